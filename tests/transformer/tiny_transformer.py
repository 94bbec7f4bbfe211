"""Tiny 2B-layout transformers for tests: built from YAML-like nodes, with every weight random and non-zero."""

from __future__ import annotations

from typing import Any

import torch
from cogvideox.transformer.model import DiffusionTransformer
from torch import Tensor, nn

ROOM = "cogvideox.transformer."
TEXT_LENGTH, TEXT_WIDTH, CHANNELS = 5, 24, 4
LATENT_GRID = (3, 8, 12)  # frames, height, width


def module_nodes(text_width: int = TEXT_WIDTH, lora: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `modules` section of a 2B-layout network."""
    nodes = {
        "pos_embed_config": {
            "target": ROOM + "positions.SinCosPositionMixin",
            "params": {"height_interpolation": 1.875, "width_interpolation": 1.875},
        },
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
    lora: dict[str, Any] | None = None, *, dtype: torch.dtype = torch.float32, **sizes: Any
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
        "modules": module_nodes(lora=lora),
    }
    return DiffusionTransformer(**(arguments | sizes), dtype=dtype)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill every trainable tensor with values of a size that keeps activations near one, none of them zero."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_embedding"):
                continue
            values = torch.randn(parameter.shape, generator=generator).to(parameter)
            is_gain = "norm" in name and name.endswith("weight")
            scale = 0.1 if parameter.ndim < 2 else 0.7 * parameter[0].numel() ** -0.5
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
