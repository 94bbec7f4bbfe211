"""Fixed sine and cosine positions of the 2B layout.

Letters: f y x video tokens along frames, height, width; l text tokens; d hidden.
"""

from __future__ import annotations

import torch
from sat.model.base_model import BaseMixin, BaseModel
from torch import Tensor, nn

from cogvideox.errors import ConfigError, ShapeError
from cogvideox.transformer.shape import NetworkShape

_MAX_PERIOD = 10000.0


def sincos_1d(width: int, positions: Tensor) -> Tensor:
    """Positions [n] (float64) -> [n, width], the sine half first. `width` is even."""
    half = width // 2
    frequencies = _MAX_PERIOD ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_3d(
    width: int, grid: tuple[int, int, int], interpolation: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """The table [f, y, x, width] in fp32: a quarter of the width for time, then 3/8 for x, then 3/8 for y.

    grid: tokens along (frames, height, width). interpolation: each axis' positions are divided by its factor.
    Source: the published 2B checkpoint's table, and diffusers' get_3d_sincos_pos_embed.
    """
    frames, height, width_tokens = (
        torch.arange(size, dtype=torch.float64) / factor for size, factor in zip(grid, interpolation, strict=True)
    )
    temporal, spatial = width // 4, width // 8 * 3
    parts = [
        sincos_1d(temporal, frames)[:, None, None],
        sincos_1d(spatial, width_tokens)[None, None],
        sincos_1d(spatial, height)[None, :, None],
    ]
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).float()


class SinCosPositionMixin(BaseMixin):
    """Overrides SAT's `position_embedding_forward` hook with a table that is added to the tokens.

    `pos_embedding` [1, l + f*y*x, d] is a stored name: never trained, zero for the text, and loaded from a checkpoint
    like any weight.
    """

    def __init__(
        self,
        height_interpolation: float = 1.0,
        width_interpolation: float = 1.0,
        time_interpolation: float = 1.0,
        *,
        network: NetworkShape,
    ) -> None:
        super().__init__()
        if network.hidden_size % 16:
            raise ConfigError(
                f"network_config.hidden_size is {network.hidden_size}; sin/cos positions need a multiple of 16"
            )
        self.network = network
        self.interpolation = (time_interpolation, height_interpolation, width_interpolation)
        shape = (1, network.text_length + network.num_video_tokens, network.hidden_size)
        self.pos_embedding = nn.Parameter(torch.empty(shape, dtype=network.dtype), requires_grad=False)

    def reinit(self, parent_model: BaseModel | None = None) -> None:
        """Fill the table; SAT's own position table goes."""
        text_length = self.network.text_length
        table = sincos_3d(self.network.hidden_size, self.network.token_grid, self.interpolation)
        self.pos_embedding.data[:, :text_length] = 0
        self.pos_embedding.data[:, text_length:] = table.flatten(0, 2).to(self.pos_embedding)
        if parent_model is not None:
            del parent_model.transformer.position_embeddings

    def check_grid(self, grid: tuple[int, int, int]) -> None:
        """Refuse a token grid that the table does not cover.

        Raises:
            ShapeError: some axis is longer than configured; says the largest legal latent size.
        """
        limit = self.network.token_grid
        if any(size > largest for size, largest in zip(grid, limit, strict=True)):
            patch = self.network.patch_size
            wanted = tuple(size * step for size, step in zip(grid, patch, strict=True))
            legal = tuple(min(size, most) * step for size, most, step in zip(grid, limit, patch, strict=True))
            raise ShapeError(
                f"a latent of (frames, height, width) {wanted} is larger than the position table "
                f"{tuple(most * step for most, step in zip(limit, patch, strict=True))}; nearest legal: {legal}"
            )

    def position_embedding_forward(
        self, text: Tensor, video: Tensor, grid: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """Add positions to text [b, l, d] and video [b, f*y*x, d]; other grids use the table's corner at the origin."""
        frames, height, width = grid
        text_table, video_table = self.pos_embedding.split([self.network.text_length, self.network.num_video_tokens], 1)
        if grid != self.network.token_grid:
            video_table = video_table.unflatten(1, self.network.token_grid)[:, :frames, :height, :width].flatten(1, 3)
        return text + text_table, video + video_table
