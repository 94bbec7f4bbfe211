"""Chunks and tiles through the whole autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from cogvideox.errors import ConfigError
from cogvideox.vae import norm_silu
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.vae.pieces import chunk_bounds, to_signed
from vae.tiny_vae import clip, random_latent, randomise, tiny_vae

TILE = (16, 16)


@pytest.mark.parametrize(
    ("total", "chunk", "expected"),
    [
        (17, None, [(0, 17)]),
        (17, 8, [(0, 9), (9, 17)]),
        (13, 8, [(0, 13)]),
        (5, 8, [(0, 5)]),
        (1, 2, [(0, 1)]),
        (5, 2, [(0, 3), (3, 5)]),
        (4, 2, [(0, 2), (2, 4)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_chunk_bounds(total: int, chunk: int | None, expected: list[tuple[int, int]]) -> None:
    assert chunk_bounds(total, chunk) == expected


# What is given


def test_pixels_become_signed_numbers() -> None:
    assert to_signed(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_uint8_video_is_converted_piece_by_piece_to_the_same_bits(dtype: torch.dtype) -> None:
    vae = tiny_vae(dtype=dtype, encode_chunk_frames=4, tile_size=TILE)
    video = torch.randint(0, 256, (1, 9, 3, 24, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(vae.encode(video).mean, vae.encode(to_signed(video)).mean)


# Tiles


@pytest.fixture
def constant_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that don't depend on the input leave only what the carried state and the tiles must make equal."""

    def moments(pieces: Sequence[torch.Tensor], num_groups: int, eps: float) -> norm_silu.Moments:
        zeros = torch.zeros(len(pieces[0]), num_groups, dtype=torch.float64)
        return norm_silu.Moments(zeros, (zeros + 1 + eps).rsqrt(), 1)

    monkeypatch.setattr(norm_silu, "group_moments", moments)


@pytest.mark.parametrize("offload", [True, False])
def test_a_tile_as_large_as_the_frame_changes_no_bit(offload: bool) -> None:
    plain = tiny_vae(encode_chunk_frames=4)
    tiled = tiny_vae(encode_chunk_frames=4, tile_size=(16, 800), offload_chunks=offload)
    video, latent = clip(9), random_latent(5)
    assert torch.equal(tiled.encode(video).mean, plain.encode(video).mean)
    assert torch.equal(tiled.decode(latent), plain.decode(latent))


def test_offloading_changes_no_bit() -> None:
    kept, offloaded = (
        tiny_vae(encode_chunk_frames=4, tile_size=TILE, offload_chunks=choice) for choice in (False, True)
    )
    video, latent = clip(9), random_latent(5)
    assert torch.equal(offloaded.encode(video).mean, kept.encode(video).mean)
    assert torch.equal(offloaded.decode(latent), kept.decode(latent))


@pytest.mark.parametrize(("tile_size", "offload"), [(None, True), (TILE, True), (TILE, False)])
def test_each_tile_carries_its_exact_state(
    tile_size: tuple[int, int] | None, offload: bool, constant_norms: None
) -> None:
    vae = tiny_vae(dtype=torch.float64, decode_chunk_latent_frames=None, tile_size=tile_size, offload_chunks=offload)
    video, latent = clip(13, 16, 24, batch=1).double(), random_latent(6, 2, 3, batch=1).double()
    encoded, decoded = vae.encode(video).mean, vae.decode(latent)
    vae.encode_chunk_frames, vae.decode_chunk_latent_frames = 4, 1
    torch.testing.assert_close(vae.encode(video).mean, encoded, rtol=0, atol=1e-12)
    torch.testing.assert_close(vae.decode(latent), decoded, rtol=0, atol=1e-12)


def test_beyond_the_reach_of_its_edges_a_tile_is_the_untiled_result(constant_norms: None) -> None:
    """With constant norms: a point depends on 13 latent pixels around it here, and single tiles end 16 away."""
    arguments = {"ch": 4, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_num_groups": 2, "temporal_compression": 2}
    plain, tiled = (
        VideoAutoencoder(**arguments, tile_size=size, tile_overlap=32)  # type: ignore[arg-type]
        for size in (None, (64, 64))
    )
    for vae in (plain, tiled):
        randomise(vae.double())
        vae.freeze()
    video, latent = clip(5, 8, 96, batch=1).double(), random_latent(3, 4, 48, batch=1).double()
    for result, expected, unit in (
        (tiled.encode(video).mean, plain.encode(video).mean, 1),
        (tiled.decode(latent), plain.decode(latent), 2),
    ):
        alone = torch.cat([torch.arange(16 * unit), torch.arange(32 * unit, 48 * unit)])
        torch.testing.assert_close(result[..., alone], expected[..., alone], rtol=0, atol=1e-12)
        seam = (result - expected)[..., 16 * unit : 32 * unit].abs()
        assert seam.max() > 1e-6  # the test would be empty if the edges had no reach


def test_frames_of_tiles_arrive_chunk_by_chunk() -> None:
    chunks = list(tiny_vae(tile_size=TILE, offload_chunks=True).decode_chunks(random_latent(5)))
    assert [chunk.shape for chunk in chunks] == [(2, 9, 3, 16, 24), (2, 8, 3, 16, 24)]


def test_gradients_pass_through_tiles() -> None:
    vae = tiny_vae(frozen=False, tile_size=TILE)
    vae.decode(vae.encode(clip(9)).mean).square().mean().backward()
    lost = [name for name, p in vae.named_parameters() if p.grad is None]
    assert not lost


@pytest.mark.parametrize("tile_size", [(12, 16), (16, 20)])
def test_impossible_tiles_are_refused_at_construction(tile_size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"tile_size \[.*\]: the (height|width) must be a multiple of 8"):
        tiny_vae(tile_size=tile_size)
