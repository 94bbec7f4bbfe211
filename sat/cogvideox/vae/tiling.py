"""Spatial tiles: where they lie in a frame, and how their results become one frame again.

All tiles of a frame have one size, and they are spread evenly: convolutions meet few shapes, and norm statistics cover
equal areas. Inside the network a tile ends in zero padding, as a frame does, so results differ near its edges; there
two tiles overlap and are blended.

Letters: b batch, c channels, t frames, h w height and width, y x height and width of the latent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogvideox.errors import ConfigError
from cogvideox.geometry import multiple_problem


@dataclass(frozen=True)
class TileSize:
    """Extent of a tile and the least overlap of neighbours, in latent pixels."""

    height: int
    width: int
    overlap: int


@dataclass(frozen=True)
class Spread:
    """Equal intervals over 0..total: where each starts, and how long all are. Latent pixels."""

    total: int
    length: int
    starts: tuple[int, ...]

    def slices(self, scale: int) -> list[slice]:
        """The intervals in units of 1 / scale latent pixel."""
        return [slice(start * scale, (start + self.length) * scale) for start in self.starts]

    def weights(self, scale: int) -> list[Tensor]:
        """Share of each interval in the result at its points, float64 [length * scale]; shares of a point sum to 1.

        1 where there is no other interval, and a straight ramp where two overlap.
        """
        length = self.length * scale
        starts = [start * scale for start in self.starts]
        slopes = torch.ones(len(starts), length, dtype=torch.float64)
        for index in range(len(starts) - 1):
            overlap = starts[index] + length - starts[index + 1]
            ramp = (torch.arange(overlap, dtype=torch.float64) + 0.5) / max(overlap, 1)
            slopes[index + 1, :overlap].clamp_(max=ramp)
            slopes[index, length - overlap :].clamp_(max=ramp.flip(0))
        total = torch.zeros(self.total * scale, dtype=torch.float64)
        for start, slope in zip(starts, slopes, strict=True):
            total[start : start + length] += slope
        return [slope / total[start : start + length] for start, slope in zip(starts, slopes, strict=True)]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a frame, row by row."""

    rows: Spread
    columns: Spread

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def areas(self, scale: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile, in units of 1 / scale latent pixel."""
        return ((rows, columns) for rows in self.rows.slices(scale) for columns in self.columns.slices(scale))

    def join(self, parts: Sequence[Tensor], scale: int) -> Tensor:
        """One b c t h' w' tensor per tile -> b c t h w. Blended in float32 (float64 for float64 parts).

        A single tile is returned as it is. scale: points of the result per latent pixel.
        """
        if len(parts) == 1:
            return parts[0]
        like = parts[0]
        exact, device = torch.promote_types(like.dtype, torch.float32), like.device
        shape = (*like.shape[:3], self.rows.total * scale, self.columns.total * scale)
        joined = torch.zeros(shape, dtype=exact, device=device)
        shares = itertools.product(self.rows.weights(scale), self.columns.weights(scale))
        for part, (rows, columns), (row, column) in zip(parts, self.areas(scale), shares, strict=True):
            joined[..., rows, columns] += part * (row[:, None] * column).to(device, exact)
        return joined.to(like.dtype)


def spread(total: int, length: int, overlap: int) -> Spread:
    """As few intervals of `length` as cover 0..total with neighbours overlapping by at least `overlap`."""
    if length >= total:
        return Spread(total, total, (0,))
    gaps = -(-(total - length) // (length - overlap))
    return Spread(total, length, tuple((total - length) * index // gaps for index in range(gaps + 1)))


def tile_grid(height: int, width: int, tile: TileSize | None) -> TileGrid:
    """The tiles of a frame of height x width latent pixels; without a tile size the frame is one tile."""
    if tile is None:
        return TileGrid(Spread(height, height, (0,)), Spread(width, width, (0,)))
    return TileGrid(spread(height, tile.height, tile.overlap), spread(width, tile.width, tile.overlap))


def check_tile(tile_size: Sequence[int] | None, tile_overlap: int, unit: int) -> TileSize | None:
    """Pixels to latent pixels. unit: pixels per latent pixel. Raises: ConfigError."""
    if tile_size is None:
        return None
    if len(tile_size) != 2:
        raise ConfigError(f"tile_size must be null or [height, width] in pixels, got {list(tile_size)}")
    for name, size in (("height", tile_size[0]), ("width", tile_size[1])):
        problem = multiple_problem(size, unit)
        if problem:
            raise ConfigError(f"tile_size {list(tile_size)}: the {name} {problem}")
    if not 0 <= tile_overlap < min(tile_size) or tile_overlap % unit:
        largest = min(tile_size) - unit
        below = max(0, min(tile_overlap // unit * unit, largest))
        nearest = [str(value) for value in (below, below + unit) if value <= largest]
        raise ConfigError(
            f"tile_overlap {tile_overlap} must be a multiple of {unit} and less than the tile's {min(tile_size)} "
            f"pixels; nearest: {' or '.join(nearest)}"
        )
    return TileSize(tile_size[0] // unit, tile_size[1] // unit, tile_overlap // unit)
