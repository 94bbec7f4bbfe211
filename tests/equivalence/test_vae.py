"""Our VAE against diffusers' AutoencoderKLCogVideoX: converted random weights, float32, outputs of deviation ~1."""

from __future__ import annotations

import pytest
import torch
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.vae.convolutions import Convolutions
from cogvideox.weights import vae_map
from vae.tiny_vae import CH, CH_MULT, GROUPS, RES_BLOCKS, clip, random_latent, tiny_vae

diffusers = pytest.importorskip("diffusers")
TOLERANCE = 2e-5
SIZES = [(16, 24), (64, 96)]  # the second is large enough for the convolutions with fewer products


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    model = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=tuple(CH * mult for mult in CH_MULT), layers_per_block=RES_BLOCKS, norm_num_groups=GROUPS
    )
    state = {vae_map.sat_to_diffusers(name): value for name, value in tiny_vae().state_dict().items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def check_encoding(vae: VideoAutoencoder, reference: torch.nn.Module, frames: int, size: tuple[int, int]) -> None:
    video = clip(frames, *size)
    ours, theirs = vae.encode(video), reference.encode(video.transpose(1, 2)).latent_dist
    for mine, other in ((ours.mean, theirs.mean), (ours.std, theirs.std)):
        other = other.transpose(1, 2)
        assert mine.shape == other.shape
        assert (mine - other).abs().max() < TOLERANCE
    assert 0.3 < theirs.mean.std() < 3


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encode_in_one_call(reference: torch.nn.Module, frames: int, size: tuple[int, int], frozen: bool) -> None:
    check_encoding(tiny_vae(frozen=frozen), reference, frames, size)


@pytest.mark.parametrize("frames", [5, 13, 17, 21, 33])
def test_encode_in_chunks_of_eight(reference: torch.nn.Module, frames: int) -> None:
    check_encoding(tiny_vae(encode_chunk_frames=8), reference, frames, SIZES[0])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6])
def test_decode(reference: torch.nn.Module, frames: int, size: tuple[int, int], frozen: bool) -> None:
    """Even counts are decoded without a single first frame, as diffusers does it."""
    latent = random_latent(frames, size[0] // 8, size[1] // 8)
    ours = tiny_vae(frozen=frozen).decode(latent, lone_first_frame=frames % 2 == 1)
    theirs = reference.decode(latent.transpose(1, 2)).sample.transpose(1, 2)
    assert ours.shape == theirs.shape
    assert 0.3 < theirs.std() < 3
    assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_contiguous_memory(reference: torch.nn.Module, size: tuple[int, int]) -> None:
    """The other layout that a CUDA device may choose, with chunks whose state is carried."""
    vae = tiny_vae(encode_chunk_frames=8)
    vae.use_convolutions(Convolutions(channels_last=False))
    check_encoding(vae, reference, 17, size)
    latent = random_latent(5, size[0] // 8, size[1] // 8)
    theirs = reference.decode(latent.transpose(1, 2)).sample.transpose(1, 2)
    assert (vae.decode(latent) - theirs).abs().max() < TOLERANCE
