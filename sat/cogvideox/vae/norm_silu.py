"""Group normalisation, its modulation and SiLU without autograd: exact statistics, no full-size temporaries, and few
launches and copies on a GPU.

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
    """How the work is divided.

    slab_elements: worked on at a time, in a float32 copy where the features have fewer digits.
    casting_kernels: reductions and products read bfloat16 or float16 and count in float32 without a copy.
    rounded_elements: frames with more elements than this are rounded to the features' type between norm and SiLU, as
        diffusers does, which saves the copy: 8 bytes per element are moved instead of 20. None: never.
    copied_elements: features of at most so many are copied to float32 for their moments, which takes 6 launches instead
        of 10. A launch takes as long as moving some 15 MB, the copy 6 bytes per element more.
    """

    slab_elements: int
    casting_kernels: bool
    rounded_elements: int | None
    copied_elements: int = 0

    def rounds(self, x: Tensor) -> bool:
        """Whether features b c t h w are rounded between norm and SiLU."""
        return self.rounded_elements is not None and max(1, x[:, :, 0].numel()) > self.rounded_elements

    def takes_moments_at_once(self, pieces: Sequence[Tensor]) -> bool:
        """Whether one operator makes the moments: of float32 features, or of a copy where it is small."""
        few = sum(piece.numel() for piece in pieces) <= self.copied_elements
        is_exact = len(pieces) == 1 and pieces[0].dtype in (torch.float32, torch.float64)
        return self.casting_kernels and (few or is_exact)


CPU_WAY = Way(2**20, casting_kernels=False, rounded_elements=None)  # 4 MiB in float32, which stay in the cache
# Few launches. The frames of more elements are those of the two largest levels: 95 % of the traffic. What the rounding
# costs there, sums in float32 at the other levels more than make up for (ResnetBlock.exact_sum; docs/memory.md).
GPU_WAY = Way(2**26, casting_kernels=True, rounded_elements=2**24, copied_elements=2**23)


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
        way, frame_elements = way_for(x.device), max(1, x[:, :, 0].numel())
        if way.rounds(x) or out.dtype == self.scale.dtype:
            for source, target, scale, shift in self._covered(x, out, start, x.shape[2]):
                apply_map(source, scale, shift, target)
            F.silu(out, inplace=True)
            return
        for source, target, scale, shift in self._covered(x, out, start, max(1, way.slab_elements // frame_elements)):
            target.copy_(F.silu(apply_map(source, scale, shift), inplace=True))

    def _covered(
        self, x: Tensor, out: Tensor, start: int, slab_frames: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Parts of x and out, and of scale and shift that cover them."""
        window = (start, start + x.shape[2])
        pieces = covered_frames(self.num_frames, self.scale.shape[2], self.lone_first_frame, slab_frames, window)
        for frames, maps in pieces:
            yield x[:, :, frames], out[:, :, frames], self.scale[:, :, maps], self.shift[:, :, maps]


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
    moments = group_moments(pieces, norm.num_groups, norm.eps)
    maps = moments.affine(norm.weight[:, None], norm.bias[:, None])[..., None, None]
    return NormMaps(maps[:, 0], maps[:, 1], sum(piece.shape[2] for piece in pieces))


@dataclass(frozen=True)
class Moments:
    """Of each group of channels: b g, float64 (float32 where `_moments_at_once` made them).

    sums: of the values over every `count` of them; count: 1 where these are means. rstd: 1 / sqrt(variance + eps).
    """

    sums: Tensor
    rstd: Tensor
    count: int

    def affine(self, slope: Tensor, offset: Tensor) -> Tensor:
        """(x - mean) rstd slope + offset, slope and offset c k, as b 2 c k: what x is multiplied by, and what is added
        then. In float32 (float64 for float64 weights)."""
        (b, g), (c, k) = self.rstd.shape, slope.shape
        exact = torch.promote_types(slope.dtype, torch.float32)
        out = torch.empty((b, 2, c, k), dtype=exact, device=slope.device)
        scale, shift = out.unflatten(2, (g, -1)).unbind(1)
        torch.mul(self.rstd[..., None, None], slope.unflatten(0, (g, -1)), out=scale)
        torch.addcmul(offset.unflatten(0, (g, -1)), self.sums[..., None, None], scale, value=-1 / self.count, out=shift)
        return out


def group_moments(pieces: Sequence[Tensor], num_groups: int, eps: float) -> Moments:
    """Of all frames of the pieces, b c t h w each, however the frames come in pieces.

    Rows are summed in float32, all rows of a group in float64.
    """
    way = way_for(pieces[0].device)
    b, c, _, h, w = pieces[0].shape
    if way.takes_moments_at_once(pieces):
        return _moments_at_once(pieces, num_groups, eps)
    frames = sum(piece.shape[2] for piece in pieces)
    exact = torch.promote_types(pieces[0].dtype, torch.float32)
    rows = torch.empty((2, b, c, frames, h), dtype=exact, device=pieces[0].device)
    start = 0
    for piece in pieces:
        for slab in _slabs(piece, way):
            _sum_rows(slab, rows[:, :, :, start : start + slab.shape[2]], way)
            start += slab.shape[2]
    if way.casting_kernels:
        rows[1].square_()
    count = c // num_groups * frames * h * w
    sums = rows.unflatten(2, (num_groups, -1)).sum((3, 4, 5), dtype=torch.float64)
    if not way.casting_kernels:
        sums, count = sums / count, 1
    total, squares = sums.unbind()
    variance = torch.addcmul(squares, total, total, value=-1 / count).clamp_(min=0)  # times the count
    return Moments(total, torch.rsub(variance, eps, alpha=-1 / count).rsqrt_(), count)


def _moments_at_once(pieces: Sequence[Tensor], num_groups: int, eps: float) -> Moments:
    """By one operator that reads float32 and loses no digits far from zero."""
    values = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=2)
    groups = values.to(torch.promote_types(values.dtype, torch.float32)).unflatten(1, (num_groups, -1))
    variance, mean = torch.var_mean(groups, (2, 3, 4, 5), correction=0)
    return Moments(mean, torch.rsub(variance, eps, alpha=-1).rsqrt_(), 1)


def _slabs(piece: Tensor, way: Way) -> tuple[Tensor, ...]:
    if way.casting_kernels:
        return (piece,)
    return piece.split(max(1, way.slab_elements // max(1, piece[:, :, 0].numel())), dim=2)


def _sum_rows(x: Tensor, rows: Tensor, way: Way) -> None:
    """x b c t h w -> 2 b c t h: sums of values; and of squares, or the roots of these with casting kernels."""
    if way.casting_kernels:
        torch.sum(x, 4, dtype=rows.dtype, out=rows[0])
        torch.linalg.vector_norm(x, dim=4, dtype=rows.dtype, out=rows[1])
        return
    values = x.to(rows.dtype)
    torch.sum(values, 4, out=rows[0])
    torch.sum(values * values, 4, out=rows[1])
