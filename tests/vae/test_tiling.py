from __future__ import annotations

import pytest
import torch
from cogvideox.errors import ConfigError
from cogvideox.vae.tiling import Spread, TileSize, check_tile, spread, tile_grid

SPREADS = [(10, 10, 0), (10, 12, 3), (10, 5, 0), (10, 4, 1), (21, 8, 7), (96, 52, 8), (170, 90, 8), (7, 3, 2)]


@pytest.mark.parametrize(("total", "length", "overlap"), SPREADS)
def test_tiles_cover_everything_evenly_and_overlap_enough(total: int, length: int, overlap: int) -> None:
    result = spread(total, length, overlap)
    assert result.length == min(length, total)
    assert result.starts[0] == 0 and result.starts[-1] + result.length == total
    steps = [after - before for before, after in zip(result.starts, result.starts[1:], strict=False)]
    assert all(0 < step <= length - overlap for step in steps)
    assert not steps or max(steps) - min(steps) <= 1
    assert not steps or (len(steps) - 1) * (length - overlap) < total - length  # one tile fewer would not do


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize(("total", "length", "overlap"), SPREADS)
def test_shares_sum_to_one_and_are_one_where_a_tile_is_alone(total: int, length: int, overlap: int, scale: int) -> None:
    result = spread(total, length, overlap)
    shares, count = torch.zeros(total * scale).double(), torch.zeros(total * scale)
    for area, weight in zip(result.slices(scale), result.weights(scale), strict=True):
        assert (weight > 0).all()
        shares[area] += weight
        count[area] += 1
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-15)
    for area, weight in zip(result.slices(scale), result.weights(scale), strict=True):
        assert (weight[count[area] == 1] == 1).all()


def test_two_tiles_share_their_overlap_by_a_straight_ramp() -> None:
    left, right = Spread(6, 4, (0, 2)).weights(1)
    assert left.tolist() == [1, 1, 0.75, 0.25]
    assert right.tolist() == [0.25, 0.75, 1, 1]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("tile", [None, TileSize(4, 5, 0), TileSize(4, 5, 1), TileSize(3, 9, 2), TileSize(99, 4, 3)])
def test_a_picture_cut_in_tiles_is_joined_again(tile: TileSize | None, scale: int) -> None:
    grid = tile_grid(9, 11, tile)
    picture = torch.randn(2, 3, 2, 9 * scale, 11 * scale, dtype=torch.float64)
    parts = [picture[..., rows, columns] for rows, columns in grid.areas(scale)]
    assert len(parts) == len(grid)
    torch.testing.assert_close(grid.join(parts, scale), picture, rtol=0, atol=1e-14)


def test_half_precision_is_blended_in_float32() -> None:
    grid = tile_grid(4, 40, TileSize(4, 30, 20))
    joined = grid.join([torch.full((1, 1, 1, 4, 30), 1.0078125, dtype=torch.bfloat16)] * 2, 1)
    assert joined.dtype == torch.bfloat16
    assert (joined == 1.0078125).all()  # shares rounded to bf16 would not add up to this


@pytest.mark.parametrize(
    ("tile_size", "overlap", "message"),
    [
        ([64], 8, r"tile_size must be null or \[height, width\] in pixels, got \[64\]"),
        ([100, 64], 8, r"tile_size \[100, 64\]: the height must be a multiple of 8, not 100; nearest: 96 or 104"),
        ([64, 4], 8, "the width must be a multiple of 8, not 4; nearest: 8$"),
        ([64, -16], 8, "the width must be a multiple of 8, not -16; nearest: 8$"),
        ([64, 96], 12, "tile_overlap 12 must be a multiple of 8 and less than the tile's 64 pixels; nearest: 8 or 16"),
        ([64, 96], 64, "tile_overlap 64 must be .* nearest: 56$"),
        ([64, 96], 60, "tile_overlap 60 must be .* nearest: 56$"),
        ([64, 96], -8, "tile_overlap -8 must be .* nearest: 0 or 8"),
    ],
)
def test_impossible_tiles(tile_size: list[int], overlap: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tile(tile_size, overlap, 8)


def test_tiles_are_given_in_pixels() -> None:
    assert check_tile([416, 720], 64, 8) == TileSize(52, 90, 8)
    assert check_tile(None, 3, 8) is None
