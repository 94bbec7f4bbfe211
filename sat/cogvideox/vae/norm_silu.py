"""Group normalisation, its modulation and SiLU without autograd: exact statistics, one pass, no full-size temporaries.

torch's own GroupNorm is avoided here. For channels-last tensors on a CPU it sums squares over the whole clip in one
float32 number, which costs a decimal digit; on a GPU it copies them to another layout and back.

Letters: b batch, c channels, t frames, h w height and width; m frames, y x height and width of a map that covers t h w
in equal blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLAB_ELEMENTS = 2**20  # worked on at a time: 4 MiB in float32, so that the steps after the first find it in the cache


@dataclass(frozen=True)
class NormMaps:
    """silu(x * scale + shift) with the maps repeated over blocks of x.

    scale, shift: b c m y x in float32 (float64 for float64 features).
    lone_first_frame: the first map frame covers one frame only, whatever the others cover.
    """

    scale: Tensor
    shift: Tensor
    lone_first_frame: bool = False

    def write(self, x: Tensor, out: Tensor) -> None:
        """x b c t h w -> out of the same shape."""
        slab_frames = max(1, SLAB_ELEMENTS // max(1, x[:, :, 0].numel()))
        for frames, maps in covered_frames(x.shape[2], self.scale.shape[2], self.lone_first_frame, slab_frames):
            source, target = x[:, :, frames], out[:, :, frames]
            scale, shift = self.scale[:, :, maps], self.shift[:, :, maps]
            if target.dtype == scale.dtype:
                apply_map(source, scale, shift, target)
                F.silu(target, inplace=True)
            else:
                exact = source.to(scale.dtype)
                apply_map(exact, scale, shift, exact)
                target.copy_(F.silu(exact, inplace=True))


def covered_frames(t: int, m: int, lone_first: bool, slab_frames: int) -> Iterator[tuple[slice, slice]]:
    """Which of t frames are covered by which of m map frames, in pieces of about `slab_frames` frames."""
    lone = 1 if lone_first else 0
    if lone:
        yield slice(0, 1), slice(0, 1)
    if m == lone:
        return
    block = (t - lone) // (m - lone)
    assert block * (m - lone) == t - lone, f"{t} frames can't be covered by {m} map frames (lone first: {lone_first})"
    if block > slab_frames:
        for index in range(m - lone):
            end = lone + (index + 1) * block
            for start in range(end - block, end, slab_frames):
                yield slice(start, min(start + slab_frames, end)), slice(lone + index, lone + index + 1)
        return
    maps = slab_frames // block
    for first in range(lone, m, maps):
        last = min(first + maps, m)
        yield slice(lone + (first - lone) * block, lone + (last - lone) * block), slice(first, last)


def apply_map(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """x * scale + shift, b c t h w, with the maps b c m y x repeated over equal blocks of x; into `out` when given."""
    for dim in (4, 3, 2):
        blocks = scale.shape[dim]
        scale, shift = scale.unsqueeze(dim + 1), shift.unsqueeze(dim + 1)
        x = x.unflatten(dim, (blocks, -1))
        out = None if out is None else out.unflatten(dim, (blocks, -1))
    result = torch.addcmul(shift, x, scale) if out is None else torch.addcmul(shift, x, scale, out=out)
    return result.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def group_norm_maps(norm: nn.GroupNorm, x: Tensor) -> NormMaps:
    """The GroupNorm of x (b c t h w) as maps b c 1 1 1."""
    mean, variance = _group_moments(x, norm.num_groups)
    channels = x.shape[1] // norm.num_groups
    rstd = (variance + norm.eps).rsqrt().repeat_interleave(channels, dim=1)
    scale = rstd * norm.weight.double()
    shift = norm.bias.double() - mean.repeat_interleave(channels, dim=1) * scale
    dtype = torch.promote_types(x.dtype, torch.float32)
    return NormMaps(scale.to(dtype)[..., None, None, None], shift.to(dtype)[..., None, None, None])


def _group_moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels: b g, float64. Rows are summed in float32, their sums in float64."""
    b, _, t = x.shape[:3]
    slab_frames = max(1, SLAB_ELEMENTS // max(1, x[:, :, 0].numel()))
    total = torch.zeros(b, num_groups, dtype=torch.float64, device=x.device)
    squares = torch.zeros_like(total)
    for start in range(0, t, slab_frames):
        slab = x[:, :, start : start + slab_frames].to(torch.promote_types(x.dtype, torch.float32))
        for moment, values in ((total, slab), (squares, slab * slab)):
            moment += values.sum(4).double().sum((2, 3)).unflatten(1, (num_groups, -1)).sum(2)
    count = x.numel() // (b * num_groups)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_(min=0)
