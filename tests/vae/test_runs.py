"""Runs of frames against all frames at once, to the bit; and on tensors without contents, what they save."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cogvideox.vae import fewer_products, frame_runs, norm_silu
from cogvideox.vae.blocks import Downsample, ResnetBlock, Upsample
from cogvideox.vae.causal_conv import CausalState
from cogvideox.vae.frame_runs import drained, regrouped, run_lengths
from simulated_cuda.meta_memory import LiveBytes
from torch import Tensor
from vae.tiny_vae import clip, random_latent, randomise, tiny_vae

ROUNDED = dataclasses.replace(norm_silu.GPU_WAY, rounded_elements=0)
WAYS = {"cpu": norm_silu.CPU_WAY, "gpu": norm_silu.GPU_WAY, "gpu, rounded": ROUNDED}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> norm_silu.Way:
    """What norms do on a kind of device, here on the CPU."""
    chosen = WAYS[request.param]
    monkeypatch.setattr(norm_silu, "way_for", lambda device: chosen)
    return chosen


def short_runs(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    monkeypatch.setattr(frame_runs, "RUN_ELEMENTS", 1)
    monkeypatch.setattr(frame_runs, "MIN_RUN_FRAMES", frames)


@pytest.mark.parametrize(
    ("total", "frame_elements", "expected"),
    [
        (49, 128 * 480 * 720, [11, 10, 10, 10, 8]),
        (25, 256 * 240 * 360, [13, 12]),
        (8, 256 * 768 * 1360, [2, 2, 2, 2]),
        (9, 128 * 768 * 1360, [5, 4]),
        (6, 2**40, [2, 2, 2]),
        (1, 2**40, [1]),
        (2, 1, [2]),
    ],
)
def test_runs_keep_pairs_together(total: int, frame_elements: int, expected: list[int]) -> None:
    assert run_lengths(total, frame_elements) == expected


def test_frames_are_regrouped_and_given_up() -> None:
    pieces = [torch.arange(3.0).view(1, 1, 3, 1, 1), torch.arange(3.0, 7.0).view(1, 1, 4, 1, 1)]
    groups = [torch.cat(group, dim=2).flatten().tolist() for group in regrouped(pieces, [2, 4, 1])]
    assert groups == [[0, 1], [2, 3, 4, 5], [6]]
    assert not pieces


def frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries round differently for another number of frames in one call: give them one at a time in all cases."""
    monkeypatch.setattr(fewer_products, "MIN_POSITIONS", 10**9)
    monkeypatch.setattr(frame_runs, "MAX_ELEMENTS", 1)


@pytest.mark.parametrize(
    ("dtype", "batch", "frames_at_a_time"),
    [
        (torch.float32, 1, 2),
        (torch.bfloat16, 1, 4),
        pytest.param(torch.float32, 2, 4, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_the_autoencoder_in_runs_is_the_same_to_the_bit(
    dtype: torch.dtype, batch: int, frames_at_a_time: int, way: norm_silu.Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call, and chunks whose state is carried; odd and even numbers of frames at every level."""
    frame_by_frame(monkeypatch)
    vae = tiny_vae(dtype=dtype)
    for chunk, frames in ((None, 13), (8, 21), (4, 9)):
        vae.encode_chunk_frames, vae.decode_chunk_latent_frames = chunk, chunk and chunk // 4
        video, latent = clip(frames, batch=batch).to(dtype), random_latent((frames + 3) // 4, batch=batch).to(dtype)
        expected = (vae.encode(video).mean, vae.decode(latent), vae.decode(latent, lone_first_frame=False))
        with monkeypatch.context() as patched:
            short_runs(patched, frames_at_a_time)
            results = (vae.encode(video).mean, vae.decode(latent), vae.decode(latent, lone_first_frame=False))
        for result, value in zip(results, expected, strict=True):
            assert torch.equal(result, value)


def test_runs_with_fewer_products_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough frames that a run takes the same path as the whole."""
    vae = tiny_vae()
    video, latent = clip(17, 64, 96, batch=1), random_latent(5, 8, 12, batch=1)
    monkeypatch.setattr(fewer_products, "MIN_POSITIONS", 0)
    expected = vae.encode(video).mean, vae.decode(latent)
    short_runs(monkeypatch, 4)
    assert torch.equal(vae.encode(video).mean, expected[0])
    assert torch.equal(vae.decode(latent), expected[1])


@pytest.mark.parametrize("lone", [True, False])
@pytest.mark.parametrize("kind", ["same width", "narrower", "down", "down in time", "up", "up in time"])
@torch.no_grad()
def test_each_module_in_runs_is_the_same_to_the_bit(kind: str, lone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    frame_by_frame(monkeypatch)
    module = {
        "same width": ResnetBlock(8, 8, 4, exact_sum=True),
        "narrower": ResnetBlock(8, 4, 4, exact_sum=False),
        "down": Downsample(8, compress_time=False),
        "down in time": Downsample(8, compress_time=True),
        "up": Upsample(8, expand_time=False),
        "up in time": Upsample(8, expand_time=True),
    }[kind]
    randomise(module)
    x = torch.randn(1, 8, 9 if lone else 8, 6, 8).contiguous(memory_format=torch.channels_last_3d)

    def run(lengths: list[int]) -> Tensor:
        pieces = [piece.clone() for piece in x.split(lengths, dim=2)]
        return torch.cat(module.runs(pieces, CausalState(lone)), dim=2)

    expected = run([x.shape[2]])
    short_runs(monkeypatch, 4)  # of doubled frames: torch may take a single image for one of another layout
    assert torch.equal(run([3, 2, 2, 2] if lone else [2, 2, 4]), expected)
    if not isinstance(module, ResnetBlock):  # whose forward is autograd's
        assert torch.equal(module(x, CausalState(lone)), expected)


@pytest.mark.parametrize("c_in", [64, 128])
@torch.no_grad()
def test_a_block_holds_two_full_tensors_and_a_run(c_in: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features in and hidden ones; with another width, what goes in is given up for two of half the size."""
    monkeypatch.setattr(norm_silu, "GPU_WAY", dataclasses.replace(norm_silu.GPU_WAY, copied_elements=0))
    block = ResnetBlock(c_in, 64, 32, exact_sum=False).to("meta")
    lengths = [9, *[8] * 19]
    frame = 64 * 16 * 16 * 4
    with LiveBytes("meta") as live:
        pieces = [torch.empty(1, c_in, t, 16, 16, device="meta") for t in lengths]
        out = block.runs(pieces, CausalState())
    assert [piece.shape[1:3] for piece in out] == [(64, t) for t in lengths]
    a_run = 4 * (9 + 2) * c_in // 64
    assert live.peak < (2 * sum(lengths) + a_run) * frame


def test_pieces_leave_the_list_one_by_one() -> None:
    pieces = [torch.zeros(1), torch.ones(1)]
    left = [len(pieces) for _ in drained(pieces)]
    assert left == [1, 0]
