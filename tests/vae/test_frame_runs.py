"""Work in runs of frames, as on CUDA beyond its 32-bit counters, against one call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cogvideox.vae import fewer_products, frame_runs
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.vae.blocks import Downsample, Upsample
from cogvideox.vae.causal_conv import CausalConv3d, CausalState
from cogvideox.vae.frame_runs import equal_runs, joined
from simulated_cuda.meta_memory import LiveBytes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vae.tiny_vae import clip, random_latent, tiny_vae

LIMITED = {torch.ops.aten.convolution.default, torch.ops.aten.upsample_nearest2d.default}


class Largest(TorchDispatchMode):
    """elements: of the largest input or output of the operators that have a limit on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func in LIMITED:
            self.elements = max(self.elements, args[0].numel(), result.numel())
        return result


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the convolutions that only CPUs use."""
    monkeypatch.setattr(fewer_products, "MIN_POSITIONS", 10**9)


@pytest.mark.parametrize(
    ("total", "most", "lengths"), [(7, 3, [3, 3, 1]), (10, 4, [4, 4, 2]), (9, 8, [5, 4]), (5, 9, [5]), (2, 0, [1, 1])]
)
def test_runs_are_few_and_equal(total: int, most: int, lengths: list[int]) -> None:
    runs = equal_runs(total, most)
    assert [run.stop - run.start for run in runs] == lengths
    assert [frame for run in runs for frame in range(total)[run]] == list(range(total))


@torch.no_grad()
def test_a_part_is_freed_before_the_next_is_made() -> None:
    def parts() -> Iterator[Tensor]:
        for value in range(5):
            yield torch.empty(2, 3, 1, 4, 4, memory_format=torch.channels_last_3d).fill_(value)

    with LiveBytes("cpu") as live:
        whole = joined(parts(), 5, dim=2)
    assert whole[0, 0, :, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert whole.is_contiguous(memory_format=torch.channels_last_3d)
    assert live.peak == (5 + 1) * 96 * 4


@pytest.mark.parametrize(
    ("module", "frames_at_a_time"),
    [
        (CausalConv3d(8, 3), 1),  # its input is larger: so many frames and two of context
        (CausalConv3d(3, 8), 3),  # its output is larger, as that of the encoder's first convolution
        (CausalConv3d(3, 8, kernel_size=1), 2),
        (Downsample(3, compress_time=True), 2),
        (Upsample(3, expand_time=False), 3),
        (Upsample(3, expand_time=True), 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_runs_give_what_one_call_gives(
    module: nn.Module, frames_at_a_time: int, batch: int, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of float64: libraries may choose another kernel for another number of frames."""
    module = module.double()
    width = module.conv.weight.shape[1]
    x = torch.randn(batch, width, 7, 6, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        expected = module(x, CausalState())
        with Largest() as whole:
            module(x, CausalState())
        limit = _elements_per_frame(module) * frames_at_a_time
        monkeypatch.setattr(frame_runs, "MAX_ELEMENTS", limit)
        with Largest() as split:
            result = module(x, CausalState())
    assert split.elements <= limit < whole.elements
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


def _elements_per_frame(module: nn.Module) -> int:
    """The least limit under which one frame of one sample fits, for frames of 6 x 8."""
    if isinstance(module, Downsample):
        return 3 * 7 * 9
    if isinstance(module, Upsample):
        return 3 * 12 * 16
    c_out, c_in, kernel = module.conv.weight.shape[:3]
    return max(c_out, c_in * kernel) * 6 * 8


@pytest.mark.parametrize("frozen", [True, False])
def test_the_autoencoder_in_runs(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_vae(dtype=torch.float64, frozen=frozen, decode_chunk_latent_frames=None)
    video, latent = clip(9).double(), random_latent(3).double()
    encoded, decoded = vae.encode(video).mean, vae.decode(latent)
    monkeypatch.setattr(frame_runs, "MAX_ELEMENTS", 16 * 16 * 24 * 3)  # one frame of one sample, and its context
    with Largest() as largest:
        torch.testing.assert_close(vae.encode(video).mean, encoded, rtol=0, atol=1e-12)
        torch.testing.assert_close(vae.decode(latent), decoded, rtol=0, atol=1e-12)
    assert largest.elements <= frame_runs.MAX_ELEMENTS


@pytest.mark.parametrize(
    ("direction", "frames", "size", "decode_chunk"),
    [
        ("encode", 49, (480, 720), None),
        ("decode", 9, (1536, 1536), 2),
        ("decode", 17, (768, 1360), 4),
        ("decode", 49, (480, 720), None),
    ],
)
def test_no_operator_at_released_width_is_too_large(
    direction: str, frames: int, size: tuple[int, int], decode_chunk: int | None
) -> None:
    """On tensors without contents; each of these went beyond a limit."""
    with torch.device("meta"):
        vae = VideoAutoencoder(decode_chunk_latent_frames=decode_chunk).to(torch.bfloat16)
    vae.freeze()
    height, width = size
    with Largest() as largest:
        if direction == "encode":
            vae.encode(torch.zeros((), dtype=torch.uint8).expand(1, frames, 3, height, width))
        else:
            vae.decode(torch.zeros(1, (frames + 3) // 4, 16, height // 8, width // 8, device="meta"))
    assert 2**28 < largest.elements < 2**31
