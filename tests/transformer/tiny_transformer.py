"""Tiny transformers of every family for tests: built from YAML-like nodes, with every weight random and non-zero."""

from __future__ import annotations

from typing import Any

import torch
from cogvideox.transformer.model import DiffusionTransformer
from torch import Tensor, nn

ROOM = "cogvideox.transformer."
TEXT_LENGTH, TEXT_WIDTH, CHANNELS = 5, 24, 4
LATENT_GRID = (3, 8, 12)  # frames, height, width
FAMILIES: dict[str, dict[str, Any]] = {
    "2b": {},
    "5b": {},
    "5b_i2v": {"in_channels": 2 * CHANNELS},
    "1.5": {"patch_size": [2, 2, 2]},
    "1.5_i2v": {"patch_size": [2, 2, 2], "in_channels": 2 * CHANNELS, "ofs_embed_dim": 32},
}


def position_node(family: str = "2b", resize: str = "slice") -> dict[str, Any]:
    """The node of a family's position scheme."""
    if family == "2b":
        factors = {"height_interpolation": 1.875, "width_interpolation": 1.875}
        return {"target": ROOM + "positions.SinCosPositionMixin", "params": {**factors, "resize": resize}}
    learned = family == "5b_i2v"
    return {
        "target": ROOM + "positions.RotaryPositionMixin",
        "params": {"learnable_pos_embed": learned, "resize": resize},
    }


def module_nodes(
    text_width: int = TEXT_WIDTH, lora: dict[str, Any] | None = None, family: str = "2b", resize: str = "slice"
) -> dict[str, Any]:
    """The `modules` section of a network."""
    nodes = {
        "pos_embed_config": position_node(family, resize),
        "patch_embed_config": {
            "target": ROOM + "patch_embed.PatchEmbedMixin",
            "params": {"text_hidden_size": text_width},
        },
        "adaln_layer_config": {"target": ROOM + "adaln.AdaLNMixin", "params": {"qk_ln": True}},
        "final_layer_config": {"target": ROOM + "final_layer.FinalLayerMixin", "params": {}},
    }
    if lora is not None:
        nodes["lora_config"] = {"target": ROOM + "lora.LoraMixin", "params": lora}
    return nodes


def build_tiny(
    lora: dict[str, Any] | None = None,
    *,
    family: str = "2b",
    resize: str = "slice",
    dtype: torch.dtype = torch.float32,
    **sizes: Any,
) -> DiffusionTransformer:
    """Two layers, 64 wide, two heads; `sizes` override the constructor's arguments."""
    frames, height, width = LATENT_GRID
    arguments: dict[str, Any] = {
        "hidden_size": 64,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_frames": 4 * (frames - 1) + 1,
        "latent_height": height,
        "latent_width": width,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "time_embed_dim": 32,
        "text_length": TEXT_LENGTH,
        "modules": module_nodes(lora=lora, family=family, resize=resize),
    }
    return DiffusionTransformer(**(arguments | FAMILIES[family] | sizes), dtype=dtype)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill every trainable tensor with values of a size that keeps activations near one, none of them zero."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_embedding") and not parameter.requires_grad:
                continue
            values = torch.randn(parameter.shape, generator=generator).to(parameter)
            is_gain = "norm" in name and name.endswith("weight")
            scale = 0.1 if parameter.ndim < 2 else 0.7 * parameter[0].numel() ** -0.5
            if name.endswith("pos_embedding"):
                scale = 0.3
            parameter.copy_(1 + 0.1 * values if is_gain else scale * values)


def inputs(
    grid: tuple[int, int, int] = LATENT_GRID, batch: int = 2, channels: int = CHANNELS, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """noised_latent, timestep, context."""
    generator = torch.Generator("cpu").manual_seed(seed)
    frames, height, width = grid
    latent = torch.randn(batch, frames, channels, height, width, generator=generator)
    timestep = torch.randint(0, 1000, (batch,), generator=generator)
    return latent, timestep, torch.randn(batch, TEXT_LENGTH, TEXT_WIDTH, generator=generator)


def family_inputs(family: str, grid: tuple[int, int, int] = LATENT_GRID) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the channels of the family, and frames padded to its patches."""
    sizes = FAMILIES[family]
    frames, height, width = grid
    if "patch_size" in sizes:
        frames += frames % 2
    return inputs((frames, height, width), channels=sizes.get("in_channels", CHANNELS))
