"""What to say when the device's memory doesn't suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cogvideox.errors import OutOfMemoryError


@contextmanager
def advise_on_memory(*advice: str) -> Iterator[None]:
    """Raises: OutOfMemoryError with the settings that save memory, where the block runs out of the device's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ")[0]
        raise OutOfMemoryError(f"out of device memory ({first}). What takes less: {'; '.join(advice)}") from error
