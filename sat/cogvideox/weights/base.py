"""Transformer weights put together from a checkpoint and, when it holds only what was trained, its base.

Names here are relative (without `model.diffusion_model.`); "plain" means without LoRA's `.original.`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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

SAT_ALPHA = 1.0  # what SAT's LoRA uses unless told otherwise; old checkpoints don't say
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


def find_base(checkpoint: SatCheckpoint) -> Path:
    """The weight file that a checkpoint was trained on, compared with the hash it recorded.

    Raises: CheckpointError when it names none, or the file is gone or has changed.
    """
    base: Mapping[str, Any] = checkpoint.extra.get("base") or {}
    if not base.get("path"):
        raise CheckpointError(
            f"{checkpoint.path} holds only a part of a transformer and names no base: give the base model"
        )
    return recorded_base(base, checkpoint.path)


def recorded_base(base: Mapping[str, Any], source: Path) -> Path:
    """The weight file that a checkpoint's entry "base" means, which has a path. source: the checkpoint's file.

    Raises: CheckpointError when the file is gone or has another hash.
    """
    recorded = Path(os.path.expanduser(str(base["path"])))
    # A run folder that was moved as a whole still finds a base that is stored relative to it.
    places = [recorded] if recorded.is_absolute() else [recorded, source.parent / recorded]
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise CheckpointError(
            f"{source} holds only what was trained, and its base {shown_path(recorded)} is not there: "
            "put the base back, or save with args.save_full=true"
        )
    file = find_states_file(found)
    actual = fingerprint(file)
    if base.get("sha256") not in (None, actual):
        raise CheckpointError(
            f"{source} was trained on {recorded}, but that file has changed since "
            f"(sha256 {actual[:12]} instead of {str(base['sha256'])[:12]}): put the original back"
        )
    return file


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


def read_transformer(checkpoint: SatCheckpoint, num_layers: int | None = None) -> TransformerWeights:
    """The whole transformer of a checkpoint, completed from its base where it holds only what was trained.

    Raises: CheckpointError when it has no transformer or only a part of one, or its base is missing or has changed.
    """
    weights = _read(checkpoint, num_layers, ())
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


def _read(checkpoint: SatCheckpoint, num_layers: int | None, seen: tuple[Path, ...]) -> TransformerWeights:
    relative = select_prefix(checkpoint.module, TRANSFORMER_PREFIX)
    plain = {plain_name(name): value for name, value in relative.items() if not is_adapter(name)}
    adapters = {name: value for name, value in relative.items() if is_adapter(name)}
    lora = lora_facts(checkpoint)
    files: tuple[Path, ...] = (checkpoint.path,)
    if not is_complete(plain, num_layers) and (adapters or checkpoint.extra.get("base")):
        file = find_base(checkpoint)
        if file in seen:
            raise CheckpointError(f"{checkpoint.path}: its base {file} leads back to itself")
        base = _read(read_checkpoint(file), num_layers, (*seen, checkpoint.path))
        plain, adapters = {**base.plain, **plain}, {**base.adapters, **adapters}
        lora, files = lora or base.lora, (*files, *base.files)
    return TransformerWeights(plain, adapters, lora, files)
