"""Transformer weights put together from a checkpoint and, when it holds only what was trained, its base.

Names here are relative (without `model.diffusion_model.`); "plain" means without LoRA's `.original.`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Size, Tensor

from cogvideox.errors import CheckpointError
from cogvideox.user_files import shown_path
from cogvideox.weights.families import TRANSFORMER_PREFIX, read_facts
from cogvideox.weights.key_rules import select_prefix, shorten
from cogvideox.weights.lora_map import MergedWeights, check_alpha, common_rank, is_adapter, plain_name
from cogvideox.weights.sat_folder import SatCheckpoint, find_states_file, fingerprint, read_checkpoint
from cogvideox.weights.transformer_map import RULES, Rule

SAT_ALPHA = 1.0  # what SAT's LoRA uses where nothing else is given; old checkpoints don't say
# How the names start that a family has all of, or none.
_TOGETHER = (
    ("ofs_embed.",),
    ("mixins.adaln_layer.query_layernorm_list.", "mixins.adaln_layer.key_layernorm_list."),
)


@dataclass(frozen=True)
class LoraFacts:
    """Rank and alpha of the adapters in a checkpoint; their scale is alpha / rank."""

    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class TransformerWeights:
    """A whole transformer: memory-mapped tensors, and the files that they come from."""

    plain: dict[str, Tensor]
    adapters: dict[str, Tensor]
    lora: LoraFacts | None
    files: tuple[Path, ...]  # the checkpoint's, then its base's

    @property
    def plain_shapes(self) -> dict[str, Size]:
        return {name: value.shape for name, value in self.plain.items()}

    def merged(self) -> Mapping[str, Tensor]:
        """The weights with the adapters added (in fp32, when read); the plain ones if there are none."""
        if self.lora is None:
            return self.plain
        return MergedWeights(self.plain, [(self.adapters, self.lora.scaling)])


def lora_facts(checkpoint: SatCheckpoint) -> LoraFacts | None:
    """What a checkpoint's adapters are; None when it has none. A file that doesn't state alpha has SAT's, 1.

    Raises: CheckpointError when adapters differ in rank, contradict the stated one, or alpha is no number above 0.
    """
    rank = common_rank(checkpoint.module, str(checkpoint.path))
    if rank is None:
        return None
    stated = checkpoint.extra.get("lora") or {}
    if stated.get("r", rank) != rank:
        raise CheckpointError(f"{checkpoint.path}: its LoRA matrices have rank {rank}, and it says {stated['r']}")
    return LoraFacts(rank, check_alpha(stated.get("alpha", SAT_ALPHA), str(checkpoint.path)))


def find_base(checkpoint: SatCheckpoint, places: Sequence[str | Path] = ()) -> Path:
    """The weight file that a checkpoint was trained on, compared with the hash it recorded.

    Arguments and errors as `recorded_base`; CheckpointError also when it names none.
    """
    base: Mapping[str, Any] = checkpoint.extra.get("base") or {}
    if not base.get("path"):
        raise CheckpointError(
            f"{checkpoint.path} holds only a part of a transformer and names no base: give the base model"
        )
    return recorded_base(base, checkpoint.path, places)


def recorded_base(base: Mapping[str, Any], source: Path, places: Sequence[str | Path] = ()) -> Path:
    """The weight file that a checkpoint's entry "base" means, which has a path.

    Args:
        source: the checkpoint's file.
        places: where else to look, when the base was moved; what is there counts when its hash is the recorded one.

    Raises: CheckpointError when the file is gone or has another hash.
    """
    recorded, wanted = Path(os.path.expanduser(str(base["path"]))), base.get("sha256")
    # A run folder that was moved as a whole still finds a base that is stored relative to it.
    own = [recorded] if recorded.is_absolute() else [recorded, source.parent / recorded]
    others = []
    for place in (*own, *(Path(os.path.expanduser(each)) for each in places)):
        file = _weight_file(place)
        if file is None or (file == source and place not in own):
            continue
        if wanted in (None, actual := _hash(file)):
            return file
        what = "that file has changed since" if place in own else f"{place} is another file"
        others.append(f"{what} (SHA-256 {actual[:12]}...)")
    meant = "" if wanted is None else f" (SHA-256 {str(wanted)[:12]}...)"
    found = ", ".join(others) or "it is not there"
    raise CheckpointError(
        f"{source} holds only what was trained, and needs its base {shown_path(recorded)}{meant}: {found}. Put it "
        "back, or say where it is now: args.base_model=PATH in training and sampling, --base PATH in the tools for LoRA"
    )


def _weight_file(place: Path) -> Path | None:
    try:
        return find_states_file(place)
    except CheckpointError:  # nothing there, or nothing of the kind
        return None


def _hash(file: Path) -> str:
    """SHA-256 of a file, read once: a large one takes some seconds, and a run asks several times."""
    status = file.stat()
    return _hash_of_version(file, status.st_size, status.st_mtime_ns)


@cache
def _hash_of_version(file: Path, size: int, modified: int) -> str:
    return fingerprint(file)


def with_bases(
    checkpoint: SatCheckpoint, is_partial: Callable[[SatCheckpoint], bool], places: Sequence[str | Path] = ()
) -> Iterator[SatCheckpoint]:
    """A checkpoint, the one that it was trained on, and so on, as long as one is partial. Each is opened when its turn
    comes.

    Args:
        is_partial: whether a checkpoint can't do without its base.
        places: where to look for a base that was moved.

    Raises: CheckpointError as `find_base`, and when the bases lead in a circle.
    """
    seen: list[Path] = []
    while True:
        yield checkpoint
        if not is_partial(checkpoint):
            return
        seen.append(checkpoint.path)
        file = find_base(checkpoint, places)
        if file in seen:
            raise CheckpointError(f"{checkpoint.path}: its base {file} leads back to itself")
        checkpoint = read_checkpoint(file)


def missing_names(names: Collection[str], num_layers: int | None = None) -> list[str]:
    """What plain relative names lack of a whole transformer; the position table aside, whose need no name tells.

    What only some families have is wanted whole, and in every layer, as soon as one name of it is there.
    num_layers: how many it should have; by default as many as the highest layer among the names says.
    """
    layers = range(_count_layers(names) if num_layers is None else num_layers)
    return [
        name
        for rule in RULES
        if _is_wanted(rule, names)
        for layer in (layers if "{i}" in rule.sat else (0,))
        for name in (rule.sat.format(i=layer, p=p) for p in ("weight", "bias"))
        if name not in names
    ]


def _count_layers(names: Collection[str]) -> int:
    """From the highest number of a layer, at least one."""
    heads = {rule.sat.partition("{i}")[0] for rule in RULES if "{i}" in rule.sat}
    numbers = [name.removeprefix(head).partition(".")[0] for head in heads for name in names if name.startswith(head)]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def _is_wanted(rule: Rule, names: Collection[str]) -> bool:
    if not rule.optional:
        return True
    together = next((heads for heads in _TOGETHER if rule.sat.startswith(heads)), ())
    return any(name.startswith(together) for name in names)


def is_complete(names: Collection[str], num_layers: int | None = None) -> bool:
    """Whether plain relative names are those of a whole transformer. Arguments as `missing_names`."""
    return not missing_names(names, num_layers)


def read_transformer(
    checkpoint: SatCheckpoint, num_layers: int | None = None, bases: Sequence[str | Path] = ()
) -> TransformerWeights:
    """The whole transformer of a checkpoint, completed from its base where it holds only what was trained.

    bases: where to look for a base that was moved.
    Raises: CheckpointError when it has no transformer or only a part of one, or its base is missing or has changed.
    """
    weights = _read(checkpoint, num_layers, bases)
    source = " on ".join(map(str, weights.files))
    read_facts(weights.plain_shapes, source)  # says more of what is no transformer at all
    absent = missing_names(weights.plain)
    if absent:
        raise CheckpointError(
            f"{source} is not a whole transformer: it lacks {len(absent)} of its tensors: {shorten(absent)}"
        )
    odd = [name for name, value in (weights.plain | weights.adapters).items() if not value.is_floating_point()]
    if odd:
        kind = str((weights.plain | weights.adapters)[odd[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{source} stores {len(odd)} tensors as {kind}: {shorten(odd)}. Take the weights as floats"
        )
    return weights


def _read(checkpoint: SatCheckpoint, num_layers: int | None, bases: Sequence[str | Path]) -> TransformerWeights:
    plain: dict[str, Tensor] = {}
    adapters: dict[str, Tensor] = {}
    lora: LoraFacts | None = None
    files: list[Path] = []
    for each in with_bases(checkpoint, lambda found: _is_partial(found, num_layers), bases):
        lora = lora or lora_facts(each)
        own_plain, own_adapters = _split(each)
        plain, adapters = {**own_plain, **plain}, {**own_adapters, **adapters}  # of one name the first counts
        files.append(each.path)
    return TransformerWeights(plain, adapters, lora, tuple(files))


def _is_partial(checkpoint: SatCheckpoint, num_layers: int | None) -> bool:
    """Whether a checkpoint was trained on another one, and its names are not those of a whole transformer."""
    plain, adapters = _split(checkpoint)
    return not is_complete(plain, num_layers) and bool(adapters or checkpoint.extra.get("base"))


def _split(checkpoint: SatCheckpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Its weights under plain relative names, and its adapters."""
    relative = select_prefix(checkpoint.module, TRANSFORMER_PREFIX)
    plain = {plain_name(name): value for name, value in relative.items() if not is_adapter(name)}
    return plain, {name: value for name, value in relative.items() if is_adapter(name)}
