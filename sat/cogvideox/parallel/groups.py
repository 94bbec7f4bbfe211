"""The process group, started once before anything is built and handed around as one object.

SAT starts a process group by itself when a model is built and none is running, and reseeds every random generator
while doing so; DeepSpeed starts one too. Both find this one instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from cogvideox.errors import ConfigError, UserError
from cogvideox.log import get_logger
from cogvideox.parallel.launch import Launch, read_launch

_T = TypeVar("_T")
_log = get_logger(__name__)
# Whoever waits for an object may wait for another process's video, or for the first one reading a large data set. A
# process that ends takes its connections with it, which ends the wait at once.
_OBJECTS_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class ProcessGroups:
    """One process among `world_size`; `device` is where its model lives; `objects` is the group that host objects
    travel in (None: the default one)."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    objects: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over processes, as a new tensor; nothing is copied to the host."""
        return self.sum(value) / self.world_size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return self._reduce(value, dist.ReduceOp.SUM)

    def max(self, value: torch.Tensor) -> torch.Tensor:
        return self._reduce(value, dist.ReduceOp.MAX)

    def _reduce(self, value: torch.Tensor, operation: Any) -> torch.Tensor:
        reduced = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(reduced, op=operation)
        return reduced

    def broadcast_object(self, value: Any) -> Any:
        """The first process's value, on every process."""
        holder = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(holder, src=0, group=self.objects)
        return holder[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's value in rank order, on every process."""
        gathered: list[Any] = [value]
        if self.world_size > 1:
            gathered = [None] * self.world_size
            dist.all_gather_object(gathered, value, group=self.objects)
        return gathered

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of `items`; parts differ by at most one item and together hold each item once."""
        return list(items[self.rank :: self.world_size])

    def agree(self, error: UserError | None) -> None:
        """Raise on every process when any of them met an error, so that none is left waiting for the others.

        Raises:
            UserError: of the same class and text as the first process's error that has one.
        """
        errors = [each for each in self.gather_objects(error) if each is not None]
        if errors:
            raise errors[0]

    def attempt(self, action: Callable[[], _T]) -> _T:
        """Run something local on every process; raise on all of them what it raised on any.

        The action must not communicate: a process that failed early would not take part.
        Raises: UserError, see agree.
        """
        error: UserError | None = None
        result: _T | None = None
        try:
            result = action()
        except UserError as caught:
            error = caught
        self.agree(error)
        return result  # type: ignore[return-value]

    def first_only(self, action: Callable[[], _T]) -> _T:
        """Run something on the first process only; its result, or its error, on every process."""
        return self.broadcast_object(self.attempt(action if self.is_first else _nothing))

    def shut_down(self) -> None:
        """Leave the group. Safe to call twice.

        A lone CPU process keeps it: nobody waits for it, and the groups of DeepSpeed and SAT in it live on.
        """
        if dist.is_initialized() and (self.world_size > 1 or self.device.type == "cuda"):
            dist.destroy_process_group()


def _nothing() -> Any:
    return None


def start_process_groups(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    rendezvous_seconds: float = 600.0,
    collective_seconds: float = 1800.0,
) -> ProcessGroups:
    """Join the other processes (gloo on CPU, NCCL on CUDA), or be alone.

    rendezvous_seconds: how long to wait for the others to start; collective_seconds: for one collective on tensors
    later on. Objects are waited for much longer: see _OBJECTS_WAIT.
    Must run before SAT or DeepSpeed is imported: DeepSpeed chooses its accelerator on import.

    Raises:
        ConfigError: CUDA asked for and absent, environment variables contradictory, other processes not
        reached in time.
    """
    local_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not local_devices:
        raise ConfigError("args.device: cuda, but no CUDA device is visible; use args.device=cpu or auto")
    use_cuda = device != "cpu" and local_devices > 0
    launch = read_launch(os.environ, local_devices if use_cuda else 0)
    if use_cuda and launch.local_rank >= local_devices:
        raise ConfigError(
            f"process {launch.rank} is number {launch.local_rank} on this machine, which has {local_devices} CUDA "
            "devices; start at most one process per device"
        )
    os.environ.update(launch.as_environment())
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if use_cuda else "cpu")
    os.environ.setdefault("SAT_LOGLEVEL", "ERROR")  # it warns of optional packages that nothing here uses
    here = torch.device("cuda", launch.local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(here)
    if not dist.is_initialized():
        _join(launch, use_cuda, rendezvous_seconds, collective_seconds)
    objects = dist.new_group(backend="gloo", timeout=_OBJECTS_WAIT) if launch.world_size > 1 else None
    return ProcessGroups(launch.rank, launch.world_size, launch.local_rank, here, objects)


def _join(launch: Launch, use_cuda: bool, rendezvous_seconds: float, collective_seconds: float) -> None:
    # Host objects (paths, errors) travel over gloo, device tensors over NCCL.
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    timeout = timedelta(seconds=collective_seconds)
    if launch.world_size == 1:  # no port, so runs side by side on one machine can't collide
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    store = _meet(launch, rendezvous_seconds)
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout)


def _meet(launch: Launch, seconds: float) -> dist.Store:
    """Connect to rank 0 and wait until every rank has said hello."""
    where = f"{launch.address}:{launch.port}"
    _log.info("waiting for %d processes at %s", launch.world_size, where)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=seconds))))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"process {launch.rank} of {launch.world_size} could not reach the others at {where} within {seconds:g} s; "
            "are all of them started, with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and is the port open? "
            f"({_first_line(error)})"
        ) from error
    store.set(f"hello/{launch.rank}", "")
    try:
        store.wait([f"hello/{rank}" for rank in range(launch.world_size)], timedelta(seconds=seconds))
    except RuntimeError as error:
        silent = [rank for rank in range(launch.world_size) if not store.check([f"hello/{rank}"])]
        raise ConfigError(
            f"process {launch.rank} met the store at {where}, but after {seconds:g} s these of {launch.world_size} "
            f"processes have not started: {silent}; look at their machines and logs"
        ) from error
    return store


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
