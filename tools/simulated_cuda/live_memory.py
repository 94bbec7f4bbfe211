"""Bytes on the device, from the birth of a tensor's storage to its end."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from simulated_cuda.phases import PhasedMode
from simulated_cuda.torch_cuda import STATE

_BLOCK = 512  # the allocator's granularity


class LiveMemory(PhasedMode):
    """Counts what lives on the device while operators run in this mode.

    now: bytes, each storage rounded up to the allocator's 512. peaks: the most while each phase ran; phases of one
    name are one. entered, left: what lived when a phase last began and ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peaks: dict[str, int] = {}
        self.entered: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self._live: dict[int, int] = {}
        STATE.allocated, STATE.peak = lambda: self.now, lambda: self.peak

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return max(self.peaks.values(), default=0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Peaks belong to the innermost phase."""
        with super().phase(name):
            self.entered[name] = self.now
            self._mark()
            try:
                yield
            finally:
                self.left[name] = self.now
        self._mark()

    def forget(self, *names: str) -> None:
        """Drop the peaks of phases that are over."""
        for name in names:
            self.peaks.pop(name, None)

    def size(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of these tensors on the device; what several share counts once."""
        storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors if _is_there(each)}
        return sum(map(_rounded, storages.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._see(result)
        elif isinstance(result, tuple | list):
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self._see(value)
        return result

    def _see(self, tensor: Tensor) -> None:
        if not _is_there(tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        self._live[key] = size = _rounded(storage)
        weakref.finalize(storage, self._forget, key)
        self.now += size
        self._mark()

    def _mark(self) -> None:
        name = self.current
        if self.now > self.peaks.get(name, -1):
            self.peaks[name] = self.now

    def _forget(self, key: int) -> None:
        self.now -= self._live.pop(key)


def _is_there(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _rounded(storage: Any) -> int:
    return int(-(-storage.nbytes() // _BLOCK) * _BLOCK)
