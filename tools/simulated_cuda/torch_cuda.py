"""torch.cuda for a device that isn't there: it has a size and streams, and nothing takes time.

Only what this program and DeepSpeed call is replaced; anything else fails as torch without CUDA does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

GIB = 2**30


@dataclass
class State:
    """What the simulated device is asked for.

    total: its memory in bytes; allocated: how much of it is taken now, and peak, the most that was; on_wait: called
    with a word whenever the host waits for everything on the device, or on a stream.
    """

    total: int = 80 * GIB
    allocated: Callable[[], int] = field(default=lambda: 0)
    peak: Callable[[], int] = field(default=lambda: 0)
    on_wait: Callable[[str], None] = field(default=lambda what: None)


STATE = State()


class Event:
    """See torch.cuda.Event."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, external: bool = False
    ) -> None: ...
    def record(self, stream: object = None) -> None: ...
    def wait(self, stream: object = None) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1.0

    def synchronize(self) -> None:
        STATE.on_wait("Event.synchronize")


class Stream:
    """See torch.cuda.Stream."""

    device = torch.device("cuda", 0)
    device_index = 0
    device_type = 1
    cuda_stream = 0

    def __init__(self, device: object = None, priority: int = 0) -> None: ...
    def wait_event(self, event: object) -> None: ...
    def wait_stream(self, stream: object) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        STATE.on_wait("Stream.synchronize")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...


class Generator:
    """The device's random generator: a seed that nobody draws with."""

    def manual_seed(self, seed: int) -> Generator:
        return self

    def initial_seed(self) -> int:
        return 0

    def get_state(self) -> Tensor:
        return _random_state()

    def set_state(self, state: Tensor) -> None: ...


_ONLY_STREAM = Stream()


@contextmanager
def _on_stream(stream: object) -> Iterator[None]:
    yield


def _random_state(device: object = 0) -> Tensor:
    return torch.zeros(16, dtype=torch.uint8)


def _silent() -> Callable[..., None]:
    """A function of its own each time: torch.compile's tables want them told apart."""

    def nothing(*_: object, **__: object) -> None: ...

    return nothing


def _properties(device: object = None) -> SimpleNamespace:
    return SimpleNamespace(
        name="simulated", total_memory=STATE.total, major=9, minor=0, multi_processor_count=132, uuid="simulated"
    )


def _stats(device: object = None) -> dict[str, int]:
    return {"allocated_bytes.all.current": STATE.allocated(), "allocated_bytes.all.peak": STATE.peak()}


def replacements() -> dict[str, Any]:
    """Names of torch.cuda and what stands for them."""
    silent = ("set_device", "empty_cache", "init", "_lazy_init", "manual_seed", "manual_seed_all", "set_rng_state",
              "set_rng_state_all", "reset_peak_memory_stats", "reset_max_memory_allocated", "set_stream",
              "reset_max_memory_cached", "ipc_collect", "reset_accumulated_memory_stats")  # fmt: skip
    return {
        **{name: _silent() for name in silent},
        "Stream": Stream,
        "Event": Event,
        "stream": _on_stream,
        "current_stream": lambda device=None: _ONLY_STREAM,
        "default_stream": lambda device=None: _ONLY_STREAM,
        "default_generators": (Generator(),),
        "get_rng_state": _random_state,
        "get_rng_state_all": lambda: [_random_state()],
        "initial_seed": lambda: 0,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "simulated",
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": _properties,
        "mem_get_info": lambda device=None: (STATE.total - STATE.allocated(), STATE.total),
        "memory_allocated": lambda device=None: STATE.allocated(),
        "memory_reserved": lambda device=None: STATE.allocated(),
        "memory_cached": lambda device=None: STATE.allocated(),
        "max_memory_allocated": lambda device=None: STATE.peak(),
        "max_memory_reserved": lambda device=None: STATE.peak(),
        "max_memory_cached": lambda device=None: STATE.peak(),
        "memory_stats": _stats,
        "synchronize": lambda device=None: STATE.on_wait("torch.cuda.synchronize"),
    }


def install() -> None:
    """Put the replacements in place, also where torch.cuda.memory and torch.cuda.random have them."""
    for name in ("range_push", "range_pop", "mark"):
        setattr(torch.cuda.nvtx, name, _silent())
    for name, value in replacements().items():
        for module in (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.streams):
            if hasattr(module, name):
                setattr(module, name, value)
