"""How many threads torch takes while weights are copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Joining and checking tensors waits for memory, not for a processor: a second thread gains nothing, and threads
    that wait for each other on a busy machine were seen to take 5 s of processor time for 0.3 s of work. The other
    processors hash the inputs meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
