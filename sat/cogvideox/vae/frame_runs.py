"""Operators whose tensors are too large for CUDA's 32-bit counters: the same result, in runs of frames.

- cuDNN takes convolutions of fewer than 2^31 elements, in and out. torch sends larger ones to a kernel that needs many
  times the memory (pytorch issues 128947 and 132300).
- Nearest enlargement of channels-last images leaves zeros, without an error, where its output goes beyond 2^32 elements
  (pytorch issue 141831); its gradient is wrong beyond 2^31 (issue 117011).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MAX_ELEMENTS = 2**31 - 1  # of any input or output of one call


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
    """Uninitialised memory, channels last."""
    shape = list(part.shape)
    shape[dim] = total
    layout = torch.channels_last_3d if part.dim() == 5 else torch.channels_last
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout)
