"""The numbers of both position schemes: sin/cos tables that are added, and rotations of queries and keys.

Letters: f y x tokens along frames, height, width; n tokens; d hidden; h head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MAX_PERIOD = 10000.0

Grid = tuple[int, int, int]  # tokens along frames, height, width


def sincos_1d(width: int, positions: Tensor) -> Tensor:
    """Positions [n] (float64) -> [n, width] fp32, the sine half first. `width` is even."""
    half = width // 2
    frequencies = _MAX_PERIOD ** -(torch.arange(half, dtype=torch.float64, device=positions.device) / half)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_3d(
    width: int,
    grid: Grid,
    interpolation: tuple[float, float, float] = (1.0, 1.0, 1.0),
    device: torch.device | None = None,
) -> Tensor:
    """The table [f, y, x, width] in fp32: a quarter of the width for time, then 3/8 for x, then 3/8 for y.

    interpolation: each axis' positions are divided by its factor.
    Source: the published 2B checkpoint's table, and diffusers' get_3d_sincos_pos_embed.
    """
    frames, height, width_tokens = (
        torch.arange(size, dtype=torch.float64, device=device) / factor
        for size, factor in zip(grid, interpolation, strict=True)
    )
    temporal, spatial = width // 4, width // 8 * 3
    parts = [
        sincos_1d(temporal, frames)[:, None, None],
        sincos_1d(spatial, width_tokens)[None, None],
        sincos_1d(spatial, height)[None, :, None],
    ]
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1)


def rotary_1d(width: int, positions: Tensor, theta: float) -> Tensor:
    """Positions [n] fp32 -> [n, width / 2, 2], cosine and sine of each pair's angle. `width` is even.

    In fp32 and in this order of operations, which gives the tables that the published models were trained with.
    """
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = torch.outer(positions, 1.0 / theta**exponent)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotary_3d(head_dim: int, positions: Sequence[Tensor], theta: float) -> Tensor:
    """The rotations [f, y, x, h / 2, 2] = (cos, sin) of tokens at fp32 `positions` along each axis.

    Of a head's pairs of channels a quarter turn with time, then 3/8 with height, then 3/8 with width.
    Source: the published 5B checkpoint's freqs_cos and freqs_sin, and diffusers' get_3d_rotary_pos_embed.
    """
    frames, height, width = positions
    grid = (len(frames), len(height), len(width))
    spatial = head_dim // 8 * 3
    parts = [
        rotary_1d(head_dim // 4, frames, theta)[:, None, None],
        rotary_1d(spatial, height, theta)[None, :, None],
        rotary_1d(spatial, width, theta)[None, None],
    ]
    return torch.cat([part.expand(*grid, -1, -1) for part in parts], dim=-2)


def fitted_span(sizes: tuple[int, int], base: tuple[int, int]) -> list[tuple[int, int]]:
    """Where a picture of (height, width) `sizes` lies when it is fitted, centred, into one of size `base`.

    Returns (start, stop) along height and width, rounded to whole tokens of `base`.
    Source: diffusers' get_resize_crop_region_for_grid, for CogVideoX 1.0.
    """
    (height, width), (base_height, base_width) = sizes, base
    if height * base_width > width * base_height:
        fitted = (base_height, round(base_height / height * width))
    else:
        fitted = (round(base_width / width * height), base_width)
    starts = [round((whole - part) / 2) for whole, part in zip(base, fitted, strict=True)]
    return [(start, start + part) for start, part in zip(starts, fitted, strict=True)]


def spread(size: int, span: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """`size` positions from the start of a span to `stop * (size - 1) / size`, fp32."""
    start, stop = span
    return torch.linspace(start, stop * (size - 1) / size, size, device=device, dtype=torch.float32)
