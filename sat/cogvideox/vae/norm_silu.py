"""Group normalisation, its modulation and SiLU without autograd: exact statistics, and features read as rarely as each
kind of device allows.

torch's own GroupNorm is avoided here. For channels-last tensors on a CPU it sums squares over the whole clip in one
float32 number, which costs a decimal digit; on a GPU it copies them to another layout and back.

Letters: b batch, c channels, t frames, h w height and width; g groups; m frames, y x height and width of a map that
covers t h w in equal blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Way:
    """How the work is divided. Both ways give the same values, but for the last bit of some.

    slab_elements: worked on at a time, in a float32 copy where the features have fewer digits.
    casting_kernels: reductions and products read bfloat16 or float16 and count in float32 without a copy.
    """

    slab_elements: int
    casting_kernels: bool


CPU_WAY = Way(2**20, casting_kernels=False)  # 4 MiB in float32: the steps after the first find it in the cache
GPU_WAY = Way(2**27, casting_kernels=True)  # few launches; 0.5 GiB in float32


def way_for(device: torch.device) -> Way:
    """Copies in the cache are free on a CPU; on a GPU a launch costs microseconds, and every copy is memory traffic."""
    return CPU_WAY if device.type == "cpu" else GPU_WAY


@dataclass(frozen=True)
class NormMaps:
    """silu(x * scale + shift) with the maps repeated over blocks of x.

    scale, shift: b c m y x in float32 (float64 for float64 features).
    num_frames: that the maps cover.
    lone_first_frame: the first map frame covers one frame only, whatever the others cover.
    """

    scale: Tensor
    shift: Tensor
    num_frames: int
    lone_first_frame: bool = False

    def write(self, x: Tensor, out: Tensor, start: int = 0) -> None:
        """x b c t h w -> out of the same shape; x begins `start` frames behind the maps' beginning."""
        slab_elements = way_for(x.device).slab_elements
        frames_at_a_time = max(1, slab_elements // max(1, x[:, :, 0].numel()))
        window = (start, start + x.shape[2])
        for frames, maps in covered_frames(
            self.num_frames, self.scale.shape[2], self.lone_first_frame, frames_at_a_time, window
        ):
            source, target = x[:, :, frames], out[:, :, frames]
            scale, shift = self.scale[:, :, maps], self.shift[:, :, maps]
            if target.dtype == scale.dtype:
                apply_map(source, scale, shift, target)
                F.silu(target, inplace=True)
            else:
                exact = apply_map(source, scale, shift)
                target.copy_(F.silu(exact, inplace=True))


def covered_frames(
    t: int, m: int, lone_first: bool, slab_frames: int, window: tuple[int, int] | None = None
) -> Iterator[tuple[slice, slice]]:
    """Which of t frames are covered by which of m map frames, in pieces of at most `slab_frames` frames.

    window: only frames start..end of the t; they are counted from its start.
    """
    lone = 1 if lone_first else 0
    block = (t - lone) // max(1, m - lone)
    assert block * (m - lone) == t - lone, f"{t} frames can't be covered by {m} map frames (lone first: {lone_first})"
    start, stop = (0, t) if window is None else window
    position = start
    while position < stop:
        if position < lone:
            end, maps = lone, slice(0, 1)
        else:
            index, offset = divmod(position - lone, block)
            index += lone
            most = min(slab_frames, stop - position)
            blocks = 0 if offset else most // block
            end = position + blocks * block if blocks else min(position + most, position - offset + block)
            maps = slice(index, index + max(1, blocks))
        yield slice(position - start, end - start), maps
        position = end


def apply_map(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """x * scale + shift, b c t h w, with the maps b c m y x repeated over equal blocks of x; into `out` when given."""
    for dim in (4, 3, 2):
        blocks = scale.shape[dim]
        scale, shift = scale.unsqueeze(dim + 1), shift.unsqueeze(dim + 1)
        x = x.unflatten(dim, (blocks, -1))
        out = None if out is None else out.unflatten(dim, (blocks, -1))
    result = torch.addcmul(shift, x, scale) if out is None else torch.addcmul(shift, x, scale, out=out)
    return result.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def group_norm_maps(norm: nn.GroupNorm, pieces: Sequence[Tensor]) -> NormMaps:
    """The GroupNorm over all frames of the pieces (b c t h w each) as maps b c 1 1 1."""
    mean, variance = _group_moments(pieces, norm.num_groups)
    rstd = (variance + norm.eps).rsqrt_()[..., None]
    exact = torch.promote_types(pieces[0].dtype, torch.float32)
    shape = (*mean.shape, norm.num_channels // norm.num_groups)
    scale, shift = torch.empty((2, *shape), dtype=exact, device=mean.device).unbind()
    torch.mul(rstd, norm.weight.view(shape[1:]), out=scale)
    torch.addcmul(norm.bias.view(shape[1:]), mean[..., None], scale, value=-1, out=shift)
    num_frames = sum(piece.shape[2] for piece in pieces)
    return NormMaps(scale.flatten(1)[..., None, None, None], shift.flatten(1)[..., None, None, None], num_frames)


def _group_moments(pieces: Sequence[Tensor], num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels: b g, float64.

    Rows are summed in float32, then rows of a frame and frames in float64, however the frames come in pieces.
    """
    way = way_for(pieces[0].device)
    frames = [_frame_moments(slab, way) for piece in pieces for slab in _slabs(piece, way)]
    moments = frames[0] if len(frames) == 1 else torch.cat(frames, dim=3)
    b, c, h, w = (pieces[0].shape[dim] for dim in (0, 1, 3, 4))
    count = c // num_groups * moments.shape[3] * h * w
    mean, square = (moments.unflatten(2, (num_groups, -1)).sum((3, 4)) / count).unbind()
    return mean, torch.addcmul(square, mean, mean, value=-1).clamp_(min=0)


def _slabs(piece: Tensor, way: Way) -> tuple[Tensor, ...]:
    if way.casting_kernels:
        return (piece,)
    return piece.split(max(1, way.slab_elements // max(1, piece[:, :, 0].numel())), dim=2)


def _frame_moments(x: Tensor, way: Way) -> Tensor:
    """Sums of values and of squares, b c t h w -> 2 b c t, float64."""
    exact = torch.promote_types(x.dtype, torch.float32)
    rows = torch.empty((2, *x.shape[:4]), dtype=exact, device=x.device)
    if way.casting_kernels:
        torch.sum(x, 4, dtype=exact, out=rows[0])
        torch.linalg.vector_norm(x, dim=4, dtype=exact, out=rows[1])
        rows[1].square_()
    else:
        values = x.to(exact)
        torch.sum(values, 4, out=rows[0])
        torch.sum(values * values, 4, out=rows[1])
    return rows.sum(4, dtype=torch.float64)
