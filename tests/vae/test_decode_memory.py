from __future__ import annotations

import logging

import pytest
import torch
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.vae.decode_memory import Choice, DecodePieces, choose_pieces, needed_bytes
from simulated_cuda.meta_memory import decode_bytes
from vae.tiny_vae import tiny_vae

PUBLISHED, ONE, TILES = DecodePieces(2), DecodePieces(1), DecodePieces(1, (64, 96), True)
OPTIONS = [(PUBLISHED, 100), (ONE, 60), (TILES, 20)]


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (100, Choice(PUBLISHED, 100, True)),
        (99, Choice(ONE, 60, True)),
        (59, Choice(TILES, 20, True)),
        (19, Choice(TILES, 20, False)),
    ],
)
def test_the_first_that_fits(free: int, expected: Choice) -> None:
    assert choose_pieces(OPTIONS, free) == expected


@pytest.mark.parametrize(
    ("size", "latent_frames"), [((480, 720), 2), ((768, 1360), 2), ((768, 1360), 1), ((240, 360), 2)]
)
def test_needed_bytes_are_those_that_are_counted(size: tuple[int, int], latent_frames: int) -> None:
    """On tensors without contents, at released width."""
    with torch.device("meta"):
        vae = VideoAutoencoder(decode_chunk_latent_frames=latent_frames).to(torch.bfloat16)
    vae.freeze()
    counted = decode_bytes(vae, 25, *size)
    assert counted <= needed_bytes(vae.decoder, DecodePieces(latent_frames), size, 4) <= 1.3 * counted


def test_the_autoencoder_takes_pieces_that_fit_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    vae = tiny_vae()
    with caplog.at_level(logging.WARNING, logger="cogvideox"):
        assert vae.fit_decoding(256, 256, 2**40).pieces == DecodePieces(2)
        assert not caplog.records
        assert vae.decode_chunk_latent_frames == 2 and vae.decode_tile is None
        one = needed_bytes(vae.decoder, ONE, (256, 256), 4)
        assert vae.fit_decoding(256, 256, one).pieces == ONE
        assert vae.decode_chunk_latent_frames == 1
        assert "1 latent frame at a time, whole frames" in caplog.text
        assert vae.fit_decoding(256, 256, 0).fits is False
    assert "may run out of memory" in caplog.text
    assert vae.decode_tile is not None and vae.decode_offload
    assert vae.tile is None and not vae.offload_chunks  # of encoding
    assert vae.decode(torch.zeros(1, 3, 16, 32, 32)).shape == (1, 9, 3, 256, 256)
