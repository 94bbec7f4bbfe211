"""How convolutions run on a device: what is chosen from what times, and that nothing but rounding depends on it.

The convolutions are really run here; only the times are given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cogvideox.vae import convolutions, fewer_products, frame_runs
from cogvideox.vae.causal_conv import CausalState
from cogvideox.vae.convolutions import DEFAULT, OPTIONS, Convolutions, Timer, fastest
from torch import Tensor, nn
from vae.tiny_vae import clip, random_latent, tiny_vae

CONTIGUOUS = Convolutions(channels_last=False)
SEARCH = Convolutions(benchmark=True)
BOTH = Convolutions(channels_last=False, benchmark=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "HEIGHT", 6)
    monkeypatch.setattr(convolutions, "WIDTH", 8)


class Clock:
    """A timer that runs the work, sees how it was done, and takes the time from a table; every first call of a
    convolution takes `first`."""

    def __init__(self, seconds: dict[Convolutions, float], first: float = 0.0) -> None:
        self.seconds, self.first = seconds, first
        self.seen: list[Convolutions] = []

    def __call__(self, work: Callable[[], object]) -> float:
        assert isinstance(work, partial)
        out = work()
        assert isinstance(out, Tensor) and out.shape == (1, 8, convolutions.FRAMES, 6, 8)
        layouts = {each.is_contiguous(memory_format=torch.channels_last_3d) for each in work.args[:2]}
        assert layouts == {not each.is_contiguous() for each in work.args[:2]}
        (channels_last,) = layouts
        way = Convolutions(channels_last, torch.backends.cudnn.benchmark)
        is_first = len(self.seen) % (convolutions.WARM_UPS + convolutions.REPEATS) == 0
        self.seen.append(way)
        return self.first if is_first and self.first else self.seconds[way]


def convs() -> list[nn.Conv3d]:
    return [nn.Conv3d(8, 8, 3, padding=(0, 1, 1)) for _ in range(2)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((2, 1, 2, 2), CONTIGUOUS),
        ((2, 2, 1, 2), SEARCH),
        ((2, 3, 1.5, 1), BOTH),
        ((1, 2, 2, 2), DEFAULT),
        ((1, 1, 1, 1), DEFAULT),
        ((1, 0.97, 0.96, 0.98), DEFAULT),  # not by enough
        ((1, 0.94, 0.96, 0.98), CONTIGUOUS),
    ],
)
def test_the_fastest_way_is_taken(
    seconds: tuple[float, ...], expected: Convolutions, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock({option: each / 1000 for option, each in zip(OPTIONS, seconds, strict=True)})
    before = torch.backends.cudnn.benchmark
    with caplog.at_level(logging.INFO, logger="cogvideox"):
        assert fastest(convs(), clock) == expected
    each = convolutions.WARM_UPS + convolutions.REPEATS
    assert clock.seen == [option for option in OPTIONS for _ in range(2 * each)]
    assert torch.backends.cudnn.benchmark == before
    (line,) = caplog.messages
    assert line.startswith(f"VAE convolutions: {expected} (ms: channels last {2 * seconds[0]:.2f}, contiguous ")


def test_a_slow_first_call_is_no_time() -> None:
    """The search of cuDNN, and the loading of kernels."""
    clock = Clock({option: 0.002 - 0.001 * option.benchmark for option in OPTIONS}, first=0.5)
    assert fastest(convs(), clock) == SEARCH


def test_time_is_limited(caplog: pytest.LogCaptureFixture) -> None:
    """What was found until then counts; a convolution that takes longer than everything is called once."""
    slow_search = Clock({DEFAULT: 0.1, CONTIGUOUS: 0.05, SEARCH: 3.0, BOTH: 0.001})
    assert fastest(convs(), slow_search) == CONTIGUOUS
    assert slow_search.seen[-1] == SEARCH and slow_search.seen.count(SEARCH) == 1
    hopeless = Clock(dict.fromkeys(OPTIONS, 60.0))
    with caplog.at_level(logging.INFO, logger="cogvideox"):
        assert fastest(convs()[:1], hopeless) == DEFAULT
    assert len(hopeless.seen) == 1
    assert caplog.messages[-1] == "VAE convolutions: channels last (ms: none within 5 s)"


def test_without_memory_for_it_the_default_stays(caplog: pytest.LogCaptureFixture) -> None:
    def timer(work: Callable[[], object]) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert fastest(convs(), timer) == DEFAULT
    assert "no memory to time the VAE's convolutions: channels last" in caplog.text
    assert not torch.backends.cudnn.benchmark


def never(work: Callable[[], object]) -> float:
    raise AssertionError("nothing is timed")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_cpu_is_not_probed(frozen: bool) -> None:
    vae = tiny_vae(frozen=frozen)
    timer: Timer = never
    vae.fit_convolutions(timer)
    assert vae.convolutions == DEFAULT


def test_the_heaviest_convolutions_are_of_full_and_half_size() -> None:
    vae = tiny_vae()
    assert [conv.weight.shape[:2] for conv in vae.heaviest_convolutions()] == [(8, 8), (16, 16)]


def test_a_search_is_on_in_the_autoencoders_calls_only() -> None:
    vae = tiny_vae(decode_chunk_latent_frames=2)
    seen: list[bool] = []
    vae.decoder.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    vae.use_convolutions(SEARCH)
    for _ in vae.decode_chunks(random_latent(4)):
        assert not torch.backends.cudnn.benchmark
    assert seen == [True, True]
    vae.use_convolutions(DEFAULT)
    vae.decode(random_latent(1))
    assert seen == [True, True, False]


def weights_layouts(vae: nn.Module) -> set[bool]:
    wide = [each for each in vae.parameters() if each.dim() > 3 and each.shape[-1] == 3 and each.shape[1] > 1]
    return {each.is_contiguous() for each in wide}


@pytest.mark.parametrize("settings", [{}, {"tile_size": (16, 16), "offload_chunks": True}], ids=["whole", "tiles"])
@pytest.mark.parametrize("chunk", [None, 8])
@pytest.mark.parametrize("run_frames", [None, 2])
def test_layouts_give_the_same(
    settings: dict[str, object], chunk: int | None, run_frames: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, to its rounding: pieces, runs, tiles, and convolutions that are cut."""
    monkeypatch.setattr(fewer_products, "MIN_POSITIONS", 10**9)  # as on CUDA
    if run_frames:
        monkeypatch.setattr(frame_runs, "RUN_ELEMENTS", 1)
        monkeypatch.setattr(frame_runs, "MIN_RUN_FRAMES", run_frames)
        monkeypatch.setattr(frame_runs, "MAX_ELEMENTS", 16 * 16 * 24 * 3)
    vae = tiny_vae(dtype=torch.float64, encode_chunk_frames=chunk, **settings)  # type: ignore[arg-type]
    video, latent = clip(17, 16, 24).double(), random_latent(5).double()
    expected = vae.encode(video).mean, vae.decode(latent)
    assert weights_layouts(vae) == {False}
    vae.use_convolutions(CONTIGUOUS)
    assert weights_layouts(vae) == {True}
    found = vae.encode(video).mean, vae.decode(latent)
    vae.use_convolutions(DEFAULT)
    assert weights_layouts(vae) == {False}
    for result, value in zip(found, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_is_in_the_layout_of_its_convolution(channels_last: bool) -> None:
    """For a 2D convolution frames are images, so that none of them is copied to become one."""
    state = CausalState(channels_last=channels_last)
    shape = (2, 4, 3, 6, 8)
    for conv in (nn.Conv3d(4, 4, 3), nn.Conv2d(4, 4, 3)):
        buffer = state.buffer(shape, conv.weight)
        assert buffer.shape == shape
        layout = Convolutions(channels_last).memory_format(conv.weight.dim())
        seen = buffer if conv.weight.dim() == 5 else buffer.transpose(1, 2).view(6, 4, 6, 8)
        assert seen.is_contiguous(memory_format=layout)


def test_joined_parts_keep_their_layout() -> None:
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        parts = (torch.full((2, 3, 1, 4, 4), 1.0).contiguous(memory_format=layout) for _ in range(3))
        with torch.no_grad():
            assert frame_runs.joined(parts, 3, dim=2).is_contiguous(memory_format=layout)
