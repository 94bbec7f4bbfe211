"""One adapter into another layout."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from cogvideox.conversion.lora.base_model import BaseModel, check_fit, describe, note_other_file, open_base
from cogvideox.conversion.manifest import write_manifest
from cogvideox.conversion.model_card import Card, Kind, card_of, family_named, write_card
from cogvideox.conversion.notes import CLI_DEMO, MODEL_LEFT_OUT
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.lora_file import DIFFUSERS_STEM, Adapter, complete, write_lora
from cogvideox.weights.lora_map import LayoutName
from cogvideox.weights.safetensors_stream import cast_to
from cogvideox.weights.sat_folder import tensor_bytes, write_checkpoint

LayoutChoice = Literal["sat"] | LayoutName
LAYOUT_CHOICES: tuple[str, ...] = ("sat", *get_args(LayoutName))
ITERATION = 1  # of SAT folders that tools make


def convert(
    adapter: Adapter, layout: LayoutChoice, output: Path, base: BaseModel | None, dtype: torch.dtype | None = None
) -> list[str]:
    """Write the adapter into a new folder, whole or not at all; return what the user should know.

    base: the model it belongs to: compared, and recorded in the result. SAT folders need one.
    Raises: CheckpointError, ConfigError.
    """
    matrices = adapter.matrices
    if base is not None:
        check_fit(adapter, base)
    if layout == "sat":
        if base is None:
            raise ConfigError(
                "--to sat needs --base: the SAT checkpoint that the LoRA belongs to is recorded in the result"
            )
        matrices = complete(matrices, base.facts.num_layers)
    notes = _notes(adapter, len(matrices) - len(adapter.matrices))
    notes += note_other_file(adapter, base) if base is not None else []
    origin = base.reference() if base is not None else dict(adapter.base)
    with new_folder(output, tensor_bytes(matrices)) as partial:
        if layout == "sat":
            stored = {
                TRANSFORMER_PREFIX + name: cast_to(name, value, dtype or value.dtype)
                for name, value in matrices.items()
            }
            lora = {"r": adapter.lora.rank, "alpha": adapter.lora.alpha}
            write_checkpoint(partial, ITERATION, stored, {"lora": lora, "base": origin})
        else:
            stem = DIFFUSERS_STEM if layout == "diffusers" else output.resolve().name
            write_lora(partial, matrices, adapter.lora, layout, stem=stem, dtype=dtype, base=origin)
        model = _model_of(adapter, base)
        write_card(partial, _card(adapter, layout, base, model), output.resolve().name)
        facts = {"layout": layout, "lora": {"r": adapter.lora.rank, "alpha": adapter.lora.alpha}}
        write_manifest(partial, [adapter.path], facts)
    return [*notes, *_reader_notes(layout, model)]


def _model_of(adapter: Adapter, base: BaseModel | None) -> Mapping[str, Any]:
    """What is known of the model that the adapter belongs to, as `base_model.describe` has it; {} for nothing.

    The recorded base is opened, not hashed: that would take longer than the conversion.
    """
    if base is not None:
        return describe(base.facts)
    if adapter.base.get("model"):
        return dict(adapter.base["model"])
    with suppress(CheckpointError):  # not there any more
        if (recorded := _recorded_base(adapter)) is not None:
            return describe(open_base(recorded).facts)
    return {}


def _recorded_base(adapter: Adapter) -> Path | None:
    """Where the adapter's file says that its base is; a path of it may be relative to the file."""
    path = adapter.base.get("path")
    return adapter.path.parent / Path(str(path)).expanduser() if path else None


def _card(adapter: Adapter, layout: LayoutChoice, base: BaseModel | None, model: Mapping[str, Any]) -> Card:
    kind: Kind = "sat" if layout == "sat" else "lora" if layout == "diffusers" else "comfyui"
    recorded = _recorded_base(adapter)
    files = [adapter.path, *([recorded] if recorded is not None else []), *(base.weights.files if base else ())]
    return card_of(adapter.path, family_named(model), adapter.lora, kind=kind, files=files)


def _reader_notes(layout: LayoutChoice, model: Mapping[str, Any]) -> list[str]:
    """What the program that will read the file does wrongly."""
    if layout == "diffusers":
        return [CLI_DEMO]
    if layout != "comfyui" or model.get("frames_per_patch", 1) > 1:
        return []
    which = f"this LoRA is for {model['name']}" if model.get("name") else "if this LoRA is for CogVideoX 1.0"
    return [
        f"{which}: ComfyUI's own CogVideoX nodes compute 1.0 models (2B, 5B, 5B-I2V) wrongly, with any LoRA and "
        "without; use kijai's CogVideoXWrapper and --to comfyui-wrapper (docs/conversion.md, Clients)"
    ]


def _notes(adapter: Adapter, num_filled: int) -> list[str]:
    notes = []
    if not adapter.is_alpha_known:
        notes.append(f"alpha {adapter.lora.alpha:g} is {adapter.alpha_from}; give --alpha if it was trained otherwise")
    if adapter.has_model:
        notes.append(MODEL_LEFT_OUT)
    if num_filled:
        notes.append(
            f"{num_filled} matrices that the file doesn't have are zeros: those layers stay as in the base, also when "
            "this LoRA is trained further"
        )
    return notes
