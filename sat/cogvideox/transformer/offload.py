"""The inputs of checkpointed blocks wait for the backward pass in host memory instead of the device's.

While a block computes, its input is copied to pinned memory on a stream of its own; the device's copy is given up when
the next block starts. In the backward pass each block has the one before it fetched, so that its input is there by the
time it is asked for. Two blocks' inputs at most are on the device besides the last block's, which never leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from weakref import finalize

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Mark = TypeVar("Mark")


class Lane(Protocol[Mark]):
    """Copies beside the computation. No method makes the host wait; a mark is a place in the lane's queue."""

    def buffer(self, like: Tensor) -> Tensor:
        """Host memory for a tensor."""

    def store(self, tensor: Tensor, host: Tensor) -> Mark:
        """Copy to host memory what the computation has made by now."""

    def fetch(self, host: Tensor, device: torch.device) -> tuple[Tensor, Mark]:
        """Memory that the computation has given up by now, and the copy into it."""

    def wait(self, mark: Mark, device: torch.device) -> None:
        """What the computation does from now on comes after the mark."""


class CudaLane:
    """A stream for the copies. Memory is the computation's, which is why it waits for a copy before it frees any."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def buffer(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def store(self, tensor: Tensor, host: Tensor) -> torch.cuda.Event:
        return self._copy(host, tensor, tensor.device)

    def fetch(self, host: Tensor, device: torch.device) -> tuple[Tensor, torch.cuda.Event]:
        tensor = torch.empty(host.shape, dtype=host.dtype, device=device)
        return tensor, self._copy(tensor, host, device)

    def wait(self, mark: torch.cuda.Event, device: torch.device) -> None:
        torch.cuda.current_stream(device).wait_event(mark)

    def _copy(self, target: Tensor, source: Tensor, device: torch.device) -> torch.cuda.Event:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return stream.record_event()


@dataclass(eq=False)
class _Parcel(Generic[Mark]):
    """One tensor under way. here: on the device, None while it is away. coming: until when it may not be read."""

    device: torch.device
    here: Tensor | None
    host: Tensor | None = None
    left: Mark | None = None
    coming: Mark | None = None


@dataclass(eq=False)
class _Block(Generic[Mark]):
    before: _Block[Mark] | None
    parcels: list[_Parcel[Mark]] = field(default_factory=list)


class ActivationOffload(Generic[Mark]):
    """Moves what is saved inside of `block`. Buffers in host memory are kept for the next step.

    lane: None copies nothing, which is for models on the CPU.
    """

    def __init__(self, lane: Lane[Mark] | None = None) -> None:
        self._lane = lane
        self._latest: _Block[Mark] | None = None
        self._free: dict[tuple[Any, ...], list[Tensor]] = {}
        # Held until they have arrived, whatever becomes of the backward pass that wanted them.
        self._arriving: list[_Parcel[Mark]] = []

    @contextmanager
    def block(self, index: int, count: int, inputs: Sequence[Tensor]) -> Iterator[None]:
        """Around the checkpoint of block `index` of `count`, in order: of what autograd saves in between, `inputs` are
        moved. Gradients are those of the same tensors, to the bit."""
        if self._lane is None:
            yield
            return
        if index == 0:
            self._begin()
        elif self._latest is not None:
            self._give_up(self._latest)
        block = self._latest = _Block(self._latest)
        moves = index + 1 < count
        moved = set(map(id, inputs))  # no references: autograd keeps `pack`, and with it whatever it refers to

        def pack(tensor: Tensor) -> Tensor | _Parcel[Mark]:
            if id(tensor) not in moved:
                return tensor
            parcel = _Parcel[Mark](tensor.device, tensor.detach())
            if moves:
                self._store(parcel)
            block.parcels.append(parcel)
            return parcel

        def unpack(packed: Tensor | _Parcel[Mark]) -> Tensor:
            return packed if isinstance(packed, Tensor) else self._take(packed, block)

        with saved_tensors_hooks(pack, unpack):
            yield
        if not moves:
            self._latest = None

    def _begin(self) -> None:
        """A new forward pass. What an unfinished one had under way arrives first."""
        assert self._lane is not None
        for parcel in self._arriving:
            if parcel.coming is not None:
                self._lane.wait(parcel.coming, parcel.device)
        self._arriving.clear()
        self._latest = None

    def _store(self, parcel: _Parcel[Mark]) -> None:
        assert self._lane is not None and parcel.here is not None
        free = self._free.setdefault((parcel.here.shape, parcel.here.dtype), [])
        parcel.host = free.pop() if free else self._lane.buffer(parcel.here)
        parcel.left = self._lane.store(parcel.here, parcel.host)
        finalize(parcel, free.append, parcel.host)

    def _give_up(self, block: _Block[Mark]) -> None:
        """The device's memory of a block's inputs, as soon as they are in host memory."""
        assert self._lane is not None
        for parcel in block.parcels:
            if parcel.left is not None:
                self._lane.wait(parcel.left, parcel.device)
                parcel.here = parcel.left = None

    def _bring(self, *parcels: _Parcel[Mark]) -> None:
        assert self._lane is not None
        for parcel in parcels:
            if parcel.here is None and parcel.host is not None:
                parcel.here, parcel.coming = self._lane.fetch(parcel.host, parcel.device)
                self._arriving.append(parcel)

    def _take(self, parcel: _Parcel[Mark], block: _Block[Mark]) -> Tensor:
        assert self._lane is not None
        self._bring(parcel)  # most often it is there: asked for by the block behind
        if parcel.coming is not None:
            self._lane.wait(parcel.coming, parcel.device)
            self._arriving.remove(parcel)
            parcel.coming = None
        tensor = parcel.here
        assert tensor is not None
        if parcel.host is not None and parcel.left is None:
            parcel.here = None  # autograd's from here on
        if block.before is not None:
            self._bring(*block.before.parcels)
        return tensor


def offload_for(device: torch.device) -> ActivationOffload[Any]:
    """Moves activations where they lie on a device with memory of its own."""
    return ActivationOffload(CudaLane() if device.type == "cuda" else None)
