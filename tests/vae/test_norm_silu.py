from __future__ import annotations

import pytest
import torch
from cogvideox.vae import norm_silu
from cogvideox.vae.norm_silu import NormMaps, Way, covered_frames, group_norm_maps
from torch import nn
from torch.nn import functional as F


@pytest.mark.parametrize("slab_elements", [1, 300, 2**20])
@pytest.mark.parametrize(
    ("frames", "map_frames", "lone_first"), [(1, 1, True), (9, 3, True), (8, 2, False), (5, 5, True)]
)
@torch.no_grad()
def test_maps_cover_blocks_of_frames_rows_and_columns(
    frames: int, map_frames: int, lone_first: bool, slab_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_silu, "CPU_WAY", Way(slab_elements, casting_kernels=False, rounded_elements=None))
    x = torch.randn(2, 4, frames, 4, 6, dtype=torch.float64)
    scale, shift = torch.randn(2, 2, 4, map_frames, 2, 3, dtype=torch.float64).unbind()
    out = torch.empty_like(x)
    NormMaps(scale, shift, frames, lone_first).write(x, out)
    lone, block = (1, (frames - 1) // max(1, map_frames - 1)) if lone_first else (0, frames // map_frames)
    index = [0] * lone + [lone + i // block for i in range(frames - lone)]
    large_scale, large_shift = (
        value[:, :, index].repeat_interleave(2, dim=3).repeat_interleave(2, dim=4) for value in (scale, shift)
    )
    torch.testing.assert_close(out, F.silu(x * large_scale + large_shift))


@pytest.mark.parametrize("slab_frames", [1, 2, 3, 4, 100])
@pytest.mark.parametrize(
    ("t", "m", "lone_first"), [(17, 5, True), (16, 4, False), (1, 1, True), (3, 3, False), (7, 1, False)]
)
def test_covered_frames_names_every_frame_once(t: int, m: int, lone_first: bool, slab_frames: int) -> None:
    pieces = list(covered_frames(t, m, lone_first, slab_frames))
    assert [i for frames, _ in pieces for i in range(t)[frames]] == list(range(t))
    assert sorted({i for _, maps in pieces for i in range(m)[maps]}) == list(range(m))


def test_frames_that_the_map_cannot_cover_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="8 frames can't be covered by 3 map frames"):
        list(covered_frames(8, 3, True, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_group_norm_is_torchs_group_norm(dtype: torch.dtype) -> None:
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 5, 6, 7).mul(3).add(2).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    out = torch.empty_like(x)
    group_norm_maps(norm.to(dtype), [x]).write(x, out)
    expected = F.silu(norm.double()(x.double()))
    tolerance: float = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 4 * torch.finfo(dtype).eps)
    assert (out - expected).abs().max() < tolerance * max(1.0, expected.abs().max().item())


@torch.no_grad()
def test_statistics_keep_their_digits_far_from_zero() -> None:
    """Where torch's own channels-last GroupNorm on a CPU loses them: mean 30 times the deviation, many elements."""
    norm = nn.GroupNorm(2, 8, eps=1e-6)
    x = (torch.randn(1, 8, 9, 48, 64, dtype=torch.float64) + 30).float()
    x = x.contiguous(memory_format=torch.channels_last_3d)
    out = torch.empty_like(x)
    group_norm_maps(norm, [x]).write(x, out)
    assert (out - F.silu(norm.double()(x.double()))).abs().max() < 2e-5
