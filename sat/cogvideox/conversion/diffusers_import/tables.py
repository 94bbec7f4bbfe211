"""What SAT stores and diffusers doesn't: computed tables, so that SAT's own strict loading finds every name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cogvideox.conversion.yaml_facts import THETA
from cogvideox.geometry import Geometry
from cogvideox.transformer.position_tables import rotary_3d, sincos_3d
from cogvideox.weights.diffusers_folder import PipelineSettings
from cogvideox.weights.families import POSITION_TABLE

UNUSED_POSITIONS = "transformer.position_embeddings.weight"
_NUM_UNUSED = 64  # rows of a table that SAT makes for itself and rotary models never read
_FREQS = ("mixins.pos_embed.freqs_cos", "mixins.pos_embed.freqs_sin")

Computed = dict[str, tuple[tuple[int, ...], Callable[[], Tensor]]]  # relative name -> shape, and how to make it


def computed_tables(
    hidden_size: int, head_dim: int, patch_size: tuple[int, int, int], rotary: bool, settings: PipelineSettings
) -> Computed:
    """The tables of a family, fp32: 2B's sin/cos table, or the rotations of 1.0 and the unused positions of all rotary
    models, which are zeros."""
    geometry = Geometry(settings.temporal_compression, patch_size=patch_size)
    latent_frames = geometry.latent_frames(settings.num_frames)
    grid = geometry.token_grid(latent_frames, settings.latent_height, settings.latent_width)
    num_tokens = math.prod(grid)
    if not rotary:
        shape = (1, settings.text_length + num_tokens, hidden_size)
        return {POSITION_TABLE: (shape, lambda: _sincos_table(hidden_size, grid, settings))}
    found: Computed = {UNUSED_POSITIONS: ((_NUM_UNUSED, hidden_size), lambda: torch.zeros(_NUM_UNUSED, hidden_size))}
    if patch_size[0] == 1:
        for part, name in enumerate(_FREQS):
            found[name] = ((num_tokens, head_dim), partial(_rotary_table, head_dim, grid, part))
    return found


def _sincos_table(hidden_size: int, grid: tuple[int, int, int], settings: PipelineSettings) -> Tensor:
    """[1, text + f*y*x, hidden_size]; zeros for the text."""
    spatial = settings.spatial_interpolation
    video = sincos_3d(hidden_size, grid, (settings.temporal_interpolation, spatial, spatial)).flatten(0, 2)
    return torch.cat([torch.zeros(settings.text_length, hidden_size), video])[None]


def _rotary_table(head_dim: int, grid: tuple[int, int, int], part: int) -> Tensor:
    """[f*y*x, head_dim]: the cosine (part 0) or sine (1) of every pair's angle, twice."""
    positions = [torch.arange(size, dtype=torch.float32) for size in grid]
    turned = rotary_3d(head_dim, positions, THETA).flatten(0, 2)
    return turned[..., part].repeat_interleave(2, dim=-1)
