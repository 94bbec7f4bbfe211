"""One adapter into another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from cogvideox.errors import ConfigError
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.lora_file import DIFFUSERS_STEM, Adapter, complete, write_lora
from cogvideox.weights.lora_map import LayoutName
from cogvideox.weights.safetensors_stream import cast_to
from cogvideox.weights.sat_folder import tensor_bytes, write_checkpoint
from conversion.manifest import write_manifest
from conversion.notes import MODEL_LEFT_OUT

from lora_tools.base_model import BaseModel, check_fit, note_other_file

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
        facts = {"layout": layout, "lora": {"r": adapter.lora.rank, "alpha": adapter.lora.alpha}}
        write_manifest(partial, [adapter.path], facts)
    return notes


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
