"""Adding adapters to a model's weights, tensor by tensor, into a SAT folder."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cogvideox.conversion.lora.base_model import BaseModel, check_fit, open_base
from cogvideox.conversion.lora.convert import ITERATION
from cogvideox.conversion.lora.merged_yaml import merged_yaml
from cogvideox.conversion.lora.source import open_adapter
from cogvideox.conversion.manifest import write_manifest
from cogvideox.conversion.model_card import card_of, write_card
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.base import recorded_base
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.lora_file import Adapter
from cogvideox.weights.lora_map import MergedWeights
from cogvideox.weights.run_config import run_config_name
from cogvideox.weights.safetensors_stream import FLOATS, Entry
from cogvideox.weights.sat_stream import write_sat_folder


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter and the strength at which it is added; 1 is as trained."""

    adapter: Adapter
    strength: float


def read_adapter_and_strength(text: str, alpha: float | None = None) -> ScaledAdapter:
    """`path` or `path:strength`; alpha is for files that don't state it.

    Raises: ConfigError for a strength that is no finite number; CheckpointError for what is no adapter.
    """
    path, colon, strength = text.rpartition(":")
    # What has a separator is a path with a colon in it, not a strength.
    if not colon or os.path.exists(os.path.expanduser(text)) or any(each in strength for each in "/\\"):
        path, strength = text, "1"
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not path or not math.isfinite(number):
        example = f"{path or 'lora'}:0.8"
        wrong = f"the strength {strength!r} is not a number" if path else "there is no path"
        raise ConfigError(f"--adapter {text!r}: {wrong}; write e.g. {example}")
    return ScaledAdapter(_open(Path(path), alpha), number)


def _open(path: Path, alpha: float | None) -> Adapter:
    adapter = open_adapter(path)
    return adapter if adapter.is_alpha_known or alpha is None else open_adapter(path, alpha=alpha)


def find_base(adapters: Sequence[ScaledAdapter], given: Path | None) -> BaseModel:
    """The model that was given, else that of the first adapter: in its file, or recorded there by path.

    Raises: CheckpointError when there is none, it has changed since, or an adapter belongs to another.
    """
    base = open_base(given) if given is not None else _own_base([each.adapter for each in adapters])
    for each in adapters:
        check_fit(each.adapter, base)
    return base


def _own_base(adapters: Sequence[Adapter]) -> BaseModel:
    reasons = []
    for adapter in adapters:
        if adapter.has_model:
            return open_base(adapter.path, drop_adapters=True)
        if not adapter.base.get("path"):
            continue
        try:
            return open_base(recorded_base(adapter.base, adapter.path))
        except CheckpointError as error:
            reasons.append(f" ({error})")
    raise CheckpointError(f"which model? no adapter records one that is still there: give --base{''.join(reasons)}")


def merge(base: BaseModel, adapters: Sequence[ScaledAdapter], output: Path, dtype: torch.dtype | None) -> bool:
    """Write base + sum of strength * alpha / rank * B A into `output`, a SAT folder with `latest`.

    Returns: whether its configuration stands beside it, which the exporter and the trainer take.

    Sums are fp32 and rounded once. Whole or not at all. Raises: CheckpointError.
    """
    updates = [(each.adapter.matrices, each.adapter.lora.scaling * each.strength) for each in adapters]
    merged = MergedWeights(base.weights.plain, updates, torch.float32)  # the writer rounds, and says what doesn't fit
    entries = [
        Entry(TRANSFORMER_PREFIX + name, tuple(value.shape), _stored_type(base, name, dtype))
        for name, value in base.weights.plain.items()
    ]
    yaml = merged_yaml(base, [each.adapter for each in adapters], output)
    with new_folder(output, sum(entry.num_bytes for entry in entries)) as partial:
        tensors = ((TRANSFORMER_PREFIX + name, merged[name]) for name in merged)
        write_sat_folder(partial, ITERATION, entries, tensors, {})
        if yaml is not None:
            (partial / run_config_name()).write_text(yaml, encoding="utf-8")
        parts = [
            {
                "path": str(each.adapter.path.resolve()),
                "strength": each.strength,
                "r": each.adapter.lora.rank,
                "alpha": each.adapter.lora.alpha,
            }
            for each in adapters
        ]
        _write_card(partial, base, adapters, output.resolve().name)
        write_manifest(partial, [*base.weights.files, *(each.adapter.path for each in adapters)], {"merged": parts})
    return yaml is not None


def _write_card(folder: Path, base: BaseModel, adapters: Sequence[ScaledAdapter], name: str) -> None:
    rows = {
        f"LoRA {number}": f"{_shown(each.adapter.path)}: rank {each.adapter.lora.rank}, alpha "
        f"{each.adapter.lora.alpha:g}, merged at strength {each.strength:g}"
        for number, each in enumerate(adapters, 1)
    }
    files = [*(each.adapter.path for each in adapters), *base.weights.files]
    one = adapters[0].adapter.path if len(adapters) == 1 else base.path  # several runs have several settings
    write_card(folder, card_of(one, base.facts, None, kind="sat", files=files, more=rows), name)


def _shown(file: Path) -> str:
    """An adapter's name without folders of this machine: its file, or its run."""
    return file.name if file.suffix == ".safetensors" else file.absolute().parent.parent.name


def _stored_type(base: BaseModel, name: str, dtype: torch.dtype | None) -> torch.dtype:
    """The type in which a weight is written. Raises: CheckpointError for one that files of weights don't have."""
    own = base.weights.plain[name].dtype
    if own not in FLOATS and dtype is None:
        raise CheckpointError(
            f"{base.path} stores {name} as {own}, which is not written: give --bf16, --fp16 or --fp32"
        )
    return dtype or own
