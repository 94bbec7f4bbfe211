"""Memory at full size, counted on tensors without contents; docs/memory.md states the figures that are checked here."""

from __future__ import annotations

import pytest
import torch
from cogvideox.vae.autoencoder import VideoAutoencoder
from simulated_cuda.meta_memory import LiveBytes, decode_bytes, encode_bytes
from vae.tiny_vae import random_latent

GIB = 2**30


def test_live_bytes_counts_tensors_while_they_live() -> None:
    before = torch.zeros(500)
    with LiveBytes("cpu") as live:
        assert before[:10].sum() == 0
        first = torch.zeros(1000)
        view = first.view(10, 100)[2:]
        second = view + 1
        assert live.now == 4000 + 3200
        del first
        assert live.now == 7200  # held by the view
        del view, second
        assert live.now == 0
        torch.zeros(10, device="meta")
    assert live.peak == 7200


def small_vae(tile_size: tuple[int, int] | None) -> VideoAutoencoder:
    """Few layers, since every operator is intercepted."""
    vae = VideoAutoencoder(
        ch=4,
        ch_mult=(1, 2),
        num_res_blocks=1,
        norm_num_groups=2,
        temporal_compression=2,
        encode_chunk_frames=4,
        tile_size=tile_size,
        tile_overlap=2,
        offload_chunks=True,
    )
    vae.freeze()
    return vae


@pytest.mark.parametrize("tile_size", [None, (8, 8)])
def test_device_memory_does_not_grow_with_the_clip(tile_size: tuple[int, int] | None) -> None:
    vae = small_vae(tile_size).to("meta", torch.bfloat16)
    assert encode_bytes(vae, 21, 8, 12) == encode_bytes(vae, 13, 8, 12)
    assert decode_bytes(vae, 21, 8, 12) == decode_bytes(vae, 13, 8, 12)


@pytest.mark.parametrize("tile_size", [None, (8, 8)])
def test_host_memory_does_not_grow_while_frames_are_taken_one_chunk_at_a_time(
    tile_size: tuple[int, int] | None,
) -> None:
    vae = small_vae(tile_size)
    peaks = []
    for latent_frames in (7, 13):
        latent = random_latent(latent_frames, 4, 6, batch=1)
        with LiveBytes("cpu") as live:
            for _ in vae.decode_chunks(latent):
                pass
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize(
    ("settings", "size", "encode", "decode"),
    [
        ({}, (768, 1360), 10.60, 14.50),
        # two of the four tiles of 768 x 1360: with offloading the others are not on the device
        ({"tile_size": (416, 720), "offload_chunks": True}, (416, 1360), 3.32, 4.57),
    ],
)
def test_full_width_takes_what_the_documentation_says(
    settings: dict[str, object], size: tuple[int, int], encode: float, decode: float
) -> None:
    with torch.device("meta"):
        vae = VideoAutoencoder(encode_chunk_frames=8, **settings).to(torch.bfloat16)  # type: ignore[arg-type]
    vae.freeze()
    assert encode_bytes(vae, 25, *size) / GIB == pytest.approx(encode, abs=0.03)
    assert decode_bytes(vae, 25, *size) / GIB == pytest.approx(decode, abs=0.03)


def test_one_call_holds_two_full_size_features_and_a_run() -> None:
    """49 x 480 x 720: 128 channels of all frames are 4.04 GiB in bf16."""
    with torch.device("meta"):
        vae = VideoAutoencoder().to(torch.bfloat16)
    vae.freeze()
    assert encode_bytes(vae, 49, 480, 720) / GIB == pytest.approx(9.2, abs=0.15)
