"""The low-rank adapter nearest to what a full fine-tune changed, and how much of the change it leaves out.

Letters: o output and i input width, r rank. The change of a matrix is fine-tuned - base, in fp32. Source: the truncated
singular value decomposition is the nearest matrix of rank r (Eckart and Young); for the fast way, "Finding structure
with randomness" (0909.4061), algorithm 4.4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Size, Tensor

from cogvideox.conversion.lora.base_model import BaseModel, describe, open_base
from cogvideox.conversion.lora.convert import ITERATION
from cogvideox.conversion.lora.source import run_yaml
from cogvideox.conversion.manifest import write_manifest
from cogvideox.conversion.model_card import card_of, write_card
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.base import LoraFacts, TransformerWeights, find_base, read_transformer
from cogvideox.weights.families import POSITION_TABLE, ROTARY_SIGNS, TRANSFORMER_PREFIX, read_facts
from cogvideox.weights.lora_map import PAIR, TARGETS, AdapterName
from cogvideox.weights.safetensors_stream import Entry, is_finite
from cogvideox.weights.sat_folder import SatCheckpoint, read_checkpoint
from cogvideox.weights.sat_stream import write_sat_folder

FAST_OVERSAMPLING, FAST_ITERATIONS = 32, 4  # at most 1 % above the smallest possible error, also for a flat spectrum
# What the rest of a transformer is, by the start of a name's part behind the layer; the first that fits counts.
_OTHER_PARTS = (
    ("MLP", (".mlp.",)),
    ("modulation (adaLN)", ("adaln_layer.adaLN_modulations", "final_layer.adaLN_modulation")),
    ("norms", ("layernorm",)),
    ("attention biases", (".attention.",)),
    ("embeddings and final layer", ("",)),
)


@dataclass
class Change:
    """Squared Frobenius norms of what changed, and of what the adapter does not hold of it."""

    total: float = 0.0
    missed: float = 0.0

    def add(self, total: float, missed: float) -> None:
        """Count one more matrix."""
        self.total += total
        self.missed += missed

    @property
    def error(self) -> float:
        """Relative error in the Frobenius norm; 0 where nothing changed."""
        return (self.missed / self.total) ** 0.5 if self.total else 0.0


@dataclass
class Report:
    """Filled while matrices are decomposed. Keys: the layer types of LoRA, and the other parts of a transformer."""

    targets: dict[str, Change] = field(default_factory=lambda: defaultdict(Change))
    others: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def inside(self) -> Change:
        """All LoRA targets together."""
        return Change(sum(c.total for c in self.targets.values()), sum(c.missed for c in self.targets.values()))

    @property
    def outside(self) -> float:
        """Share of the whole change (squared norm) that no LoRA on attention can hold."""
        everything = self.inside.total + sum(self.others.values())
        return sum(self.others.values()) / everything if everything else 0.0

    def lines(self) -> list[str]:
        """A short table."""
        everything = self.inside.total + sum(self.others.values())
        rows = [f"{'layers':<28}{'share of the change':>20}{'relative error':>16}"]
        for name, change in [*self.targets.items(), ("all LoRA layers", self.inside)]:
            rows.append(f"{name:<28}{change.total / everything:>20.1%}{change.error:>16.2e}")
        rows += [f"{name:<28}{value / everything:>20.1%}{'left out':>16}" for name, value in self.others.items()]
        return [*rows, f"{self.outside:.1%} of the change lies outside the layers that LoRA adapts"]


def open_pair(finetuned: Path, base: Path | None, iteration: str | None) -> tuple[TransformerWeights, BaseModel]:
    """The fine-tuned weights (adapters among them count as merged) and the model they were trained from.

    Raises: CheckpointError when there is no base, or the two are different models.
    """
    checkpoint = read_checkpoint(finetuned, iteration)
    weights = read_transformer(checkpoint, bases=() if base is None else (base,))
    model = open_base(base or _recorded(checkpoint))
    facts = read_facts(weights.plain_shapes, str(checkpoint.path))
    shapes = weights.plain_shapes
    same = {key: value == describe(model.facts)[key] for key, value in describe(facts).items() if key != "name"}
    odd = [name for name, shape in _measured(model).items() if shapes.get(name) != shape]
    if odd or not all(same.values()):
        raise CheckpointError(
            f"{checkpoint.path} is {facts.summary}, {model.path} is {model.facts.summary}: not a pair"
            + (f" (e.g. {odd[0]})" if all(same.values()) else "")
        )
    return weights, model


def _measured(base: BaseModel) -> dict[str, Size]:
    """What training can change: everything but the fixed tables, which a fine-tune need not hold."""
    fixed = ROTARY_SIGNS if base.facts.learned_table else (*ROTARY_SIGNS, POSITION_TABLE)
    return {name: shape for name, shape in base.weights.plain_shapes.items() if name not in fixed}


def _recorded(checkpoint: SatCheckpoint) -> Path:
    """What the checkpoint names as its base, else args.load of its run."""
    if (checkpoint.extra.get("base") or {}).get("path"):
        try:
            return find_base(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(
                f"the base that {checkpoint.path} records can't be used: give --base ({error})"
            ) from error
    yaml = run_yaml(checkpoint.path)
    if yaml is None or yaml.load_path is None or not yaml.load_path.exists():
        raise CheckpointError(f"{checkpoint.path} records no base that is still there: give --base")
    return yaml.load_path


def extract(finetuned: TransformerWeights, base: BaseModel, rank: int, output: Path, *, fast: bool = False) -> Report:
    """Write the adapter of `rank` (alpha = rank, fp32) into `output`, a SAT folder that names its base.

    Raises: CheckpointError when nothing changed or the folder can't be written; ConfigError for a rank too high.
    """
    width = base.facts.hidden_size
    if not 1 <= rank <= width:
        raise ConfigError(f"--rank {rank}: between 1 and {width}, the width of this model")
    names = [
        AdapterName(layer, target, kind)
        for layer in range(base.facts.num_layers)
        for target in TARGETS
        for kind in PAIR
    ]
    shapes = {"A": (rank, width), "B": (width, rank)}
    entries = [Entry(TRANSFORMER_PREFIX + name.sat, shapes[name.kind], torch.float32) for name in names]
    report = Report()
    with new_folder(output, sum(entry.num_bytes for entry in entries)) as partial:
        lora = LoraFacts(rank, float(rank))
        extra = {"lora": {"r": lora.rank, "alpha": lora.alpha}, "base": base.reference()}
        tensors = _adapters(finetuned, base, rank, fast, report)
        write_sat_folder(partial, ITERATION, entries, tensors, extra)
        _measure_others(finetuned, base, report)
        if report.inside.total == 0:
            raise CheckpointError(f"{finetuned.files[0]} has the attention weights of {base.path}: nothing to extract")
        errors = {name: change.error for name, change in report.targets.items()}
        facts = {"lora": extra["lora"], "relative_error": errors, "share_outside": report.outside}
        card = card_of(finetuned.files[0], base.facts, lora, kind="sat", files=[finetuned.files[0], base.path])
        write_card(partial, card, output.resolve().name)
        write_manifest(partial, [*finetuned.files, base.path], facts)
    return report


def decompose(change: Tensor, rank: int, *, fast: bool = False) -> tuple[Tensor, Tensor]:
    """change fp32 [o, i] -> A [r, i], B [o, r] with B A nearest to it; the singular values are split evenly.

    fast: randomised, about ten times quicker; its error is at most 1 % above the smallest one.
    """
    if fast and rank + FAST_OVERSAMPLING < min(change.shape):
        u, s, v = torch.svd_lowrank(change, q=rank + FAST_OVERSAMPLING, niter=FAST_ITERATIONS)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def _adapters(
    finetuned: TransformerWeights, base: BaseModel, rank: int, fast: bool, report: Report
) -> Iterator[tuple[str, Tensor]]:
    """A and B of every target in turn, measured on the way."""
    merged = finetuned.merged()
    for layer in range(base.facts.num_layers):
        for target in TARGETS:
            weight = f"transformer.layers.{layer}.attention.{target.sat}.weight"
            rows = slice(target.part * base.facts.hidden_size, (target.part + 1) * base.facts.hidden_size)
            change = _change(finetuned, merged, base, weight, rows)
            a, b = decompose(change, rank, fast=fast)
            report.targets[f"attention {target.comfyui.removeprefix('attn_')}"].add(
                change.square().sum(dtype=torch.float64).item(),
                (change - b @ a).square().sum(dtype=torch.float64).item(),
            )
            for kind, value in zip(PAIR, (a, b), strict=True):
                yield TRANSFORMER_PREFIX + AdapterName(layer, target, kind).sat, value.contiguous()


def _change(
    finetuned: TransformerWeights,
    tensors: Mapping[str, Tensor],
    base: BaseModel,
    name: str,
    rows: slice = slice(None),
) -> Tensor:
    """tensors (of the fine-tune) - base, fp32. Raises: CheckpointError for NaN and infinity."""
    ours, theirs = tensors[name][rows].float(), base.weights.plain[name][rows].float()
    change = ours - theirs
    if not is_finite(change):
        file = base.path if not is_finite(theirs) else finetuned.files[0]
        raise CheckpointError(f"{file}: NaN or infinity in {name}: training diverged; take an earlier checkpoint")
    return change


def _measure_others(finetuned: TransformerWeights, base: BaseModel, report: Report) -> None:
    """Add up the change of everything that no adapter holds."""
    adapted = tuple(f".attention.{target.sat}.weight" for target in TARGETS)
    for name in _measured(base):
        if name.endswith(adapted):
            continue
        part = next(part for part, words in _OTHER_PARTS if any(word in name for word in words))
        change = _change(finetuned, finetuned.plain, base, name)
        report.others[part] += change.square().sum(dtype=torch.float64).item()
