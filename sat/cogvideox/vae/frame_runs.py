"""Work in runs of frames: the same result with less memory, and within CUDA's 32-bit counters.

Features are a list of pieces of frames where nothing needs a gradient. What uses them takes the pieces off the list one
by one and frees them, so that two full-size tensors hardly exist at one time where one is made from the other.

CUDA's libraries have limits, which also count where autograd keeps features in one piece:
- cuDNN takes convolutions of fewer than 2^31 elements, in and out. torch sends larger ones to a kernel that needs many
  times the memory (pytorch issues 128947 and 132300).
- Nearest enlargement of channels-last images leaves zeros, without an error, where its output goes beyond 2^32 elements
  (pytorch issue 141831); its gradient is wrong beyond 2^31 (issue 117011).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

MAX_ELEMENTS = 2**31 - 1  # of any input or output of one call
# About so many elements in a run: 10 frames of 128 channels at 480 x 720, 4 at 768 x 1360. Longer runs take more
# memory, shorter ones more time, since each reads two frames of context again.
RUN_ELEMENTS = 3 * 2**27
MIN_RUN_FRAMES = 2  # the context that a run leaves for the next one


def run_lengths(total: int, frame_elements: int) -> list[int]:
    """How many of `total` frames stand in each run: equal even numbers but for the last, the odd frame in the first.

    So pairs of frames that are averaged, doubled or multiplied together stay in one run.
    frame_elements: of one frame of all samples, where it is largest.
    """
    odd = total % 2
    most = (max(MIN_RUN_FRAMES, RUN_ELEMENTS // frame_elements) + 1) // 2
    pairs = equal_runs(max(1, total // 2), most)
    lengths = [2 * (min(run.stop, total // 2) - run.start) for run in pairs]
    lengths[0] += odd
    return lengths


def regrouped(pieces: list[Tensor], lengths: Sequence[int]) -> Iterator[list[Tensor]]:
    """The frames of the pieces, b c t h w, in groups of other lengths, as views; pieces leave the list when passed."""
    start = 0
    for length in lengths:
        group = []
        while length:
            stop = min(start + length, pieces[0].shape[2])
            group.append(pieces[0][:, :, start:stop])
            length -= stop - start
            start = stop
            if start == pieces[0].shape[2]:
                pieces.pop(0)
                start = 0
        yield group


def drained(pieces: list[Tensor]) -> Iterator[Tensor]:
    """The pieces one after another, each taken off the list."""
    while pieces:
        yield pieces.pop(0)


def longest(pieces: Iterable[Tensor]) -> int:
    """Frames of the longest piece, b c t h w."""
    return max(piece.shape[2] for piece in pieces)


def equal_runs(total: int, most: int) -> list[slice]:
    """0..total as the fewest runs of at most `most` (at least 1), of equal length but for the last one."""
    most = max(1, most)
    step = -(-total // -(-total // most))
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def joined(parts: Iterable[Tensor], total: int, dim: int) -> Tensor:
    """The parts one after another along `dim`, where they are `total` long together; a single part as it is.

    Without autograd each part is copied and freed before the next one is asked for.
    """
    if torch.is_grad_enabled():
        listed = list(parts)
        return listed[0] if len(listed) == 1 else torch.cat(listed, dim)
    out, end = None, 0
    for part in parts:
        if part.shape[dim] == total:
            return part
        out = _like(part, total, dim) if out is None else out
        start, end = end, end + part.shape[dim]
        out.narrow(dim, start, end - start).copy_(part)
        del part  # the next one is made now
    assert out is not None and end == total, f"parts of {end} frames or images, not {total}"
    return out


def _like(part: Tensor, total: int, dim: int) -> Tensor:
    """Uninitialised memory in the part's layout."""
    shape = list(part.shape)
    shape[dim] = total
    layout = torch.channels_last_3d if part.dim() == 5 else torch.channels_last
    if not part.is_contiguous(memory_format=layout):
        layout = torch.contiguous_format
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout)
