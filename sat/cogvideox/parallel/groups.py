"""The process group, started once before anything is built and handed around as one object.

SAT starts a process group by itself when a model is built and none is running, and reseeds every random generator
while doing so; DeepSpeed starts one too. Both find this one instead.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from cogvideox import stopping
from cogvideox.errors import EXIT_USER_ERROR, ConfigError, LostProcessError, UserError
from cogvideox.log import get_logger
from cogvideox.parallel.devices import device_index, leave_device_to_deepspeed, refuse_shared
from cogvideox.parallel.launch import Launch, read_launch
from cogvideox.parallel.peers import Peers, connect_peers
from cogvideox.stopping import Stopped

_T = TypeVar("_T")
_log = get_logger(__name__)
# Whoever waits for an object may wait for another process's video, or for the first one reading a large data set.
# Whether that process lives is not a matter of time: see peers.
_OBJECTS_WAIT = timedelta(days=7)
# How long the news of a lost process may take, once a collective has failed.
_NEWS_S = 5.0
# For leaving the group after an error; NCCL may wait for processes that are not coming.
_LEAVE_S = 20.0


@dataclass(frozen=True)
class ProcessGroups:
    """One process among `world_size`; `device` is where its model lives; `objects` is the group that host objects
    travel in (None: the default one); `peers` knows which of the others live.

    A with-statement leaves the group at its end. A collective that fails in it because another process is gone becomes
    a LostProcessError that names the process, or Stopped where all were asked to stop.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    objects: dist.ProcessGroup | None = None
    peers: Peers | None = None

    def __enter__(self) -> ProcessGroups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = None
        if isinstance(error, RuntimeError) and self.peers is not None:
            lost = self.peers.wait_for_loss(_NEWS_S)
        if lost is None:
            self.shut_down(error)
            return
        found = LostProcessError(lost)
        found.is_shared = self.peers is not None and not self.peers.speaks
        self.shut_down(found)
        stopping.check()
        raise found from None

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

    def agree(self, error: UserError | Stopped | None) -> None:
        """Raise on every process when any of them met an error or was asked to stop, so that none is left waiting for
        the others. While all is well this costs one number over gloo, and no wait for the device.

        Raises:
            UserError, Stopped: of the same class and text as the first process's that has one, errors first.
        """
        with stopping.deferred():
            self._agree(error)

    def _agree(self, error: UserError | Stopped | None) -> None:
        if self.world_size > 1:
            met = torch.tensor(int(error is not None))
            dist.all_reduce(met, op=dist.ReduceOp.MAX, group=self.objects)
            if not met:
                return
        raised = [each for each in self.gather_objects(error) if each is not None]
        for each in sorted(raised, key=lambda each: isinstance(each, Stopped)):
            if isinstance(each, UserError):
                each.is_shared = True
            raise each

    def attempt(self, action: Callable[[], _T]) -> _T:
        """Run something local on every process; raise on all of them what it raised on any.

        The action must not communicate: a process that failed early would not take part.
        Raises: UserError, Stopped, see agree.
        """
        error: UserError | Stopped | None = None
        result: _T | None = None
        try:
            stopping.catch_up()
            result = action()
        except (UserError, Stopped) as caught:
            error = caught
        self.agree(error)
        return result  # type: ignore[return-value]

    def first_only(self, action: Callable[[], _T]) -> _T:
        """Run something on the first process only; its result, or its error, on every process."""
        return self.broadcast_object(self.attempt(action if self.is_first else _nothing))

    def shut_down(self, error: BaseException | None = None) -> None:
        """Leave the group; `error` is why, where it is no success. Safe to call twice.

        A lone CPU process keeps it: nobody waits for it, and the groups of DeepSpeed and SAT in it live on.
        """
        if self.peers is not None:
            self.peers.leave("" if error is None else _first_line(error))
        if not dist.is_initialized() or (self.world_size == 1 and self.device.type == "cpu"):
            return
        if error is not None:
            status = error.status if isinstance(error, Stopped) else EXIT_USER_ERROR
            late = threading.Timer(_LEAVE_S, os._exit, (status,))
            late.daemon = True
            late.start()
            with suppress(RuntimeError):  # of a group that is broken already
                dist.destroy_process_group()
            late.cancel()
        else:
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
    later on, and for a sign of life of a process. Objects of processes that live are waited for much longer.
    Must run before SAT or DeepSpeed is imported: DeepSpeed chooses its accelerator on import.

    Raises:
        ConfigError: CUDA asked for and absent, several processes on one device, environment variables contradictory,
        other processes not reached in time.
    """
    local_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not local_devices:
        raise ConfigError("args.device: cuda, but no CUDA device is visible; use args.device=cpu or auto")
    use_cuda = device != "cpu" and local_devices > 0
    launch = read_launch(os.environ)
    local_rank = launch.local_rank
    if local_rank is None:
        local_rank = launch.rank % local_devices if use_cuda else 0
    launch = dataclasses.replace(launch, local_rank=local_rank)
    index = device_index(launch.rank, local_rank, local_devices) if use_cuda else local_rank
    os.environ.update(launch.as_environment())
    leave_device_to_deepspeed(os.environ, index)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if use_cuda else "cpu")
    os.environ.setdefault("SAT_LOGLEVEL", "ERROR")  # it warns of optional packages that nothing here uses
    here = torch.device("cuda", index) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(here)
    objects, peers = None, None
    if not dist.is_initialized():
        peers = _join(launch, use_cuda, rendezvous_seconds, collective_seconds)
    if launch.world_size > 1:
        objects = dist.new_group(backend="gloo", timeout=_OBJECTS_WAIT)
    groups = ProcessGroups(launch.rank, launch.world_size, local_rank, here, objects, peers)
    if use_cuda and launch.world_size > 1:
        own = socket.gethostname(), str(torch.cuda.get_device_properties(here).uuid)
        refuse_shared(groups.gather_objects(own))
    return groups


def _join(launch: Launch, use_cuda: bool, rendezvous_seconds: float, collective_seconds: float) -> Peers | None:
    # Host objects (paths, errors) travel over gloo, device tensors over NCCL.
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    timeout = timedelta(seconds=collective_seconds)
    if launch.world_size == 1:  # no port, so runs side by side on one machine can't collide
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return None
    store = _meet(launch, rendezvous_seconds)
    peers = connect_peers(launch, store, rendezvous_seconds, collective_seconds)
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout)
    return peers


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
