"""What a row holds, on its way between processes: the fields one after the other in one file in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

Values = Mapping[str, Tensor]


def write_row(fd: int, values: Values) -> None:
    """Put a row at the beginning of the file. values: contiguous, on the CPU."""
    parts = _bytes_of(values)
    written = os.pwritev(fd, parts, 0)
    assert written == sum(part.nbytes for part in parts), "a file in memory takes everything or fails"


def read_row(fd: int, into: Values) -> None:
    """Take the row that was put there, into memory of the same fields."""
    parts = _bytes_of(into)
    size = os.preadv(fd, parts, 0)
    assert size == sum(part.nbytes for part in parts), "the row has another size than its memory"


def copy_row(values: Values, into: Values) -> None:
    """The same within a process."""
    for name, value in values.items():
        assert into[name].shape == value.shape, f"{name}: {tuple(value.shape)} into {tuple(into[name].shape)}"
        into[name].copy_(value)


def _bytes_of(values: Values) -> list[memoryview]:
    # By name: both sides see the same order. As bytes: numpy has no bfloat16.
    return [values[name].reshape(-1).view(torch.uint8).numpy().data for name in sorted(values)]
