"""The position schemes: one mixin each.

Both know at which token grids they can work (`largest_grid`), may add a table to the tokens (SAT's
`position_embedding_forward` hook) and may rotate queries and keys (`rotation`).

Letters: f y x video tokens along frames, height, width; l text tokens; s = l + f*y*x; d hidden; h head width.
"""

from __future__ import annotations

import sys
from typing import Literal

import torch
from sat.model.base_model import BaseMixin, BaseModel
from torch import Tensor, nn

from cogvideox.errors import ConfigError
from cogvideox.transformer.position_tables import Grid, fitted_span, rotary_3d, sincos_3d, spread
from cogvideox.transformer.rotary import rotation_matrices
from cogvideox.transformer.shape import NetworkShape

UNLIMITED = sys.maxsize


class SinCosPositionMixin(BaseMixin):
    """Adds a fixed sin/cos table to the tokens (2B).

    `pos_embedding` [1, l + f*y*x, d] is a stored name: never trained, zero for the text, and loaded from a checkpoint
    like any weight.

    resize: what happens at other heights and widths than configured. "slice" takes the table's corner at the origin,
    and larger sizes are refused. "interpolate" computes a table for the size with the same interpolation factors, as
    diffusers does: smaller sizes get the same corner, larger ones go on where the table ends.

    Raises:
        ConfigError: a hidden size that the table can't have.
    """

    def __init__(
        self,
        height_interpolation: float = 1.0,
        width_interpolation: float = 1.0,
        time_interpolation: float = 1.0,
        resize: Literal["slice", "interpolate"] = "slice",
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
        self.largest_grid = _largest_grid(network.token_grid, resize == "interpolate")
        self.pos_embedding = _empty_table(network, trainable=False)

    def reinit(self, parent_model: BaseModel | None = None) -> None:
        """Fill the table; SAT's own position table goes."""
        text_length = self.network.text_length
        self.pos_embedding.data[:, :text_length] = 0
        self.pos_embedding.data[:, text_length:] = self._computed(self.network.token_grid)
        if parent_model is not None:
            del parent_model.transformer.position_embeddings

    def position_embedding_forward(self, text: Tensor, video: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Add positions to text [b, l, d] and video [b, f*y*x, d]."""
        if all(size <= most for size, most in zip(grid, self.network.token_grid, strict=True)):
            return _add_corner(self.pos_embedding, self.network, text, video, grid)
        return text + self.pos_embedding[:, : self.network.text_length], video + self._computed(grid)

    def rotation(self, grid: Grid, device: torch.device) -> None:
        """Nothing is rotated."""

    def _computed(self, grid: Grid) -> Tensor:
        like = self.pos_embedding
        return sincos_3d(self.network.hidden_size, grid, self.interpolation, like.device).flatten(0, 2).to(like)


class RotaryPositionMixin(BaseMixin):
    """Rotates queries and keys of the video tokens (5B and 1.5), and may add a learned table as well (5B-I2V).

    Pairs of neighbouring channels turn by position * theta^(-2i/width): a quarter of a head with time, 3/8 with height,
    3/8 with width, each axis' positions divided by its interpolation factor. Rotations are computed in fp32 for every
    forward and stored nowhere, so no cast of the model reaches them, and every grid and device has its own. The
    published 1.0 checkpoints hold them as `freqs_sin` and `freqs_cos`: `stored_tables` gives these.

    learnable_pos_embed: `pos_embedding` [1, l + f*y*x, d], a stored name, is added to the tokens and trained. Other
    grids than configured take its corner at the origin along each axis. (diffusers replaces it by a sin/cos table at
    other frame counts, which throws away what it has learned, and refuses other sizes.)

    resize: what happens at other heights and widths than configured. "slice" counts from the origin; sizes up to the
    configured one (1.5: 300 x 300) are legal. "interpolate" fits the picture, centred, into the configured one, so that
    positions stay in the range seen in training, at any size: what diffusers does for CogVideoX 1.0. (1.5 was trained
    on many sizes counted from the origin; there "slice" is right.)
    Along time both count from 0, up to latent_frames tokens.

    Raises:
        ConfigError: a head width that does not split into pairs, or a learned table that should be interpolated.
    """

    pos_embedding: nn.Parameter | None

    def __init__(
        self,
        theta: float = 10000.0,
        learnable_pos_embed: bool = False,
        height_interpolation: float = 1.0,
        width_interpolation: float = 1.0,
        time_interpolation: float = 1.0,
        resize: Literal["slice", "interpolate"] = "slice",
        *,
        network: NetworkShape,
    ) -> None:
        super().__init__()
        if network.head_dim % 16:
            raise ConfigError(
                f"network_config: hidden_size {network.hidden_size} and num_attention_heads "
                f"{network.num_attention_heads} make heads of width {network.head_dim}; "
                "rotary positions need a multiple of 16"
            )
        if learnable_pos_embed and resize != "slice":
            raise ConfigError(
                "pos_embed_config: a learned table (learnable_pos_embed: true) can't be interpolated; use resize: slice"
            )
        self.network = network
        self.theta = theta
        self.interpolation = (time_interpolation, height_interpolation, width_interpolation)
        self.resize = resize
        _, height, width = network.token_grid
        self.largest_grid = network.token_grid
        if not learnable_pos_embed:
            self.largest_grid = _largest_grid((network.latent_frames, height, width), resize == "interpolate")
        self.pos_embedding = _empty_table(network, trainable=True) if learnable_pos_embed else None

    def reinit(self, parent_model: BaseModel | None = None) -> None:
        """The learned table starts at zero. SAT's own position table stays: unused, but in published checkpoints."""
        if self.pos_embedding is not None:
            nn.init.zeros_(self.pos_embedding)
        if parent_model is not None:
            parent_model.transformer.position_embeddings.to(self.network.dtype).requires_grad_(False)

    def position_embedding_forward(self, text: Tensor, video: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Add the learned table, if there is one, to text [b, l, d] and video [b, f*y*x, d]."""
        if self.pos_embedding is None:
            return text, video
        return _add_corner(self.pos_embedding, self.network, text, video, grid)

    def rotation(self, grid: Grid, device: torch.device) -> Tensor:
        """The rotation of every token, [2, s, 1, h/2, 2] fp32 (see rotary.rotate); text tokens stay as they are.

        Nothing is read back from the device, and it takes far less time than one block.
        """
        video = rotary_3d(self.network.head_dim, self._positions(grid, device), self.theta).flatten(0, 2)
        text = video.new_zeros(self.network.text_length, *video.shape[1:])
        text[..., 0] = 1
        return rotation_matrices(*torch.cat([text, video]).unbind(-1))

    def stored_tables(self) -> dict[str, Tensor]:
        """The buffers of published 1.0 checkpoints: `freqs_sin` and `freqs_cos` [f*y*x, h] at the configured size."""
        video = rotary_3d(self.network.head_dim, self._positions(self.network.token_grid, None), self.theta)
        cos, sin = video.flatten(0, 2).repeat_interleave(2, dim=-2).unbind(-1)
        return {"freqs_sin": sin.contiguous(), "freqs_cos": cos.contiguous()}

    def _positions(self, grid: Grid, device: torch.device | None) -> list[Tensor]:
        positions = [torch.arange(size, dtype=torch.float32, device=device) for size in grid]
        if self.resize == "interpolate":
            spans = fitted_span(grid[1:], self.network.token_grid[1:])
            positions[1:] = [spread(size, span, device) for size, span in zip(grid[1:], spans, strict=True)]
        return [places / factor for places, factor in zip(positions, self.interpolation, strict=True)]


def _largest_grid(configured: Grid, any_size: bool) -> Grid:
    return (configured[0], UNLIMITED, UNLIMITED) if any_size else configured


def _empty_table(network: NetworkShape, trainable: bool) -> nn.Parameter:
    shape = (1, network.text_length + network.num_video_tokens, network.hidden_size)
    return nn.Parameter(torch.empty(shape, dtype=network.dtype), requires_grad=trainable)


def _add_corner(table: Tensor, network: NetworkShape, text: Tensor, video: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Add a table [1, l + f*y*x, d]; grids smaller than configured use its corner at the origin."""
    frames, height, width = grid
    text_table, video_table = table.split([network.text_length, network.num_video_tokens], 1)
    if grid != network.token_grid:
        video_table = video_table.unflatten(1, network.token_grid)[:, :frames, :height, :width].flatten(1, 3)
    return text + text_table, video + video_table
