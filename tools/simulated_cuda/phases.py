"""Which part of a run is under way, for whatever counts in a dispatch mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils._python_dispatch import TorchDispatchMode

OUTSIDE = "between"  # the phase that runs where no other does


class PhasedMode(TorchDispatchMode):
    """A mode of torch that knows the phase of the run; what is counted belongs to the innermost one."""

    def __init__(self) -> None:
        super().__init__()
        self._phases = [OUTSIDE]

    @property
    def current(self) -> str:
        """The innermost phase."""
        return self._phases[-1]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Until the block ends, this is the innermost phase."""
        self._phases.append(name)
        try:
            yield
        finally:
            self._phases.pop()
