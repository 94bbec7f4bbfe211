"""The model that an adapter belongs to: opened, described for the adapter's file, and compared with the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cogvideox.errors import CheckpointError
from cogvideox.released import FAMILIES
from cogvideox.weights.base import TransformerWeights, read_transformer, recorded_base
from cogvideox.weights.families import TransformerFacts, read_facts
from cogvideox.weights.lora_file import Adapter
from cogvideox.weights.sat_folder import read_checkpoint
from cogvideox.weights.torch_file import sha256_of


@dataclass(frozen=True)
class BaseModel:
    """A whole transformer without adapters, memory-mapped."""

    weights: TransformerWeights
    facts: TransformerFacts

    @property
    def path(self) -> Path:
        """The weight file."""
        return self.weights.files[0]

    @cached_property
    def sha256(self) -> str:
        """Of the weight file; some seconds for a large one."""
        return sha256_of(self.path)

    def reference(self) -> dict[str, Any]:
        """What an adapter's file says of it; a run folder's loader finds it again by path and hash."""
        return {
            "path": str(self.path.resolve()),
            "sha256": self.sha256,
            "model": describe(self.facts),
        }


def describe(facts: TransformerFacts) -> dict[str, Any]:
    """What tells one model from another, also where the adapters' shapes are the same."""
    return {
        "hidden_size": facts.hidden_size,
        "num_layers": facts.num_layers,
        "in_channels": facts.in_channels,
        "frames_per_patch": facts.patch_size[0],
        "rotary": facts.rotary,
        "name": facts.summary,
    }


def open_base(path: Path, *, drop_adapters: bool = False) -> BaseModel:
    """Open a SAT checkpoint that holds, or is completed from its own base to, a whole transformer.

    Raises: CheckpointError when it isn't one, or has adapters itself (unless `drop_adapters`).
    """
    weights = read_transformer(read_checkpoint(path))
    if drop_adapters:
        weights = replace(weights, adapters={}, lora=None)
    if weights.lora is not None:
        raise CheckpointError(
            f"{weights.files[0]} holds LoRA adapters itself: give the plain model that they were trained on"
        )
    return BaseModel(weights, read_facts(weights.plain_shapes, str(weights.files[0])))


def check_fit(adapter: Adapter, base: BaseModel) -> None:
    """Raises: CheckpointError when the adapter was trained on another model, as far as its file and shapes say."""
    facts = base.facts
    if adapter.width != facts.hidden_size or adapter.num_layers > facts.num_layers:
        sizes = (adapter.width, adapter.num_layers)
        names = [family.name for family in FAMILIES if (family.hidden_size, family.num_layers) == sizes]
        owner = f" (as {', '.join(names)})" if names else ""
        raise CheckpointError(
            f"{adapter.path} adapts {adapter.num_layers} layers of width {adapter.width}{owner}, but {base.path} is "
            f"{facts.summary}: it belongs to another model"
        )
    trained_on = _recorded_model(adapter, base)
    ours = describe(facts)
    if trained_on is not None and any(trained_on.get(key, ours[key]) != ours[key] for key in ours if key != "name"):
        raise CheckpointError(
            f"{adapter.path} was trained on {trained_on.get('name', 'another model')}, but {base.path} is "
            f"{facts.summary}: use a LoRA of that model"
        )


def note_other_file(adapter: Adapter, base: BaseModel) -> list[str]:
    """What to say when `base` was given and is another file than the one that the adapter was trained on."""
    recorded = adapter.base.get("sha256")
    if recorded is None or adapter.path == base.path or recorded == base.sha256:
        return []
    return [
        f"{adapter.path} was trained on a file with SHA-256 {str(recorded)[:12]}..., {base.path} has "
        f"{base.sha256[:12]}...: the same model in another file is as good, other weights are not"
    ]


def _recorded_model(adapter: Adapter, base: BaseModel) -> Mapping[str, Any] | None:
    """The model that the adapter's file names, directly or by a path that still leads to it."""
    if adapter.base.get("model"):
        return adapter.base["model"]
    if not adapter.base.get("path") or adapter.base.get("sha256") == base.sha256:
        return None
    try:
        return describe(open_base(recorded_base(adapter.base, adapter.path)).facts)
    except CheckpointError:  # gone, replaced or damaged since: nothing known
        return None
