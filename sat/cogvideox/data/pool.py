"""Decoding with a time limit that holds: processes that can be killed.

A decoder that hangs in C can't be interrupted from Python, and a DataLoader whose worker hangs or crashes is
lost. Here every job has a deadline; the process that misses it (or dies) is replaced, and the job comes back
as a Failure. Finished clips travel through one anonymous file in memory per process (memfd): one copy in, one
copy out into the batch, and no need for /dev/shm, which is small in containers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Protocol

from cogvideox import stopping
from cogvideox.data.clips import Job, JobRunner, ReadDone, RowRead
from cogvideox.data.decode import ClipInfo
from cogvideox.data.row_memory import Values, copy_row, read_row
from cogvideox.data.survey import Failure
from cogvideox.data.worker import READY
from cogvideox.errors import DataError

_START_LIMIT_S = 300.0
_POLL_S = 0.5


@dataclass(frozen=True, eq=False)
class Task:
    """A job, the key under which its result comes back, and for rows the memory to put their fields in."""

    key: Hashable
    job: Job
    into: Values | None = None


Outcome = ClipInfo | ReadDone | Failure


class DecodePool(Protocol):
    """Results come in the order in which they are ready, one for every task."""

    def submit(self, task: Task) -> None: ...

    def next_result(self) -> tuple[Hashable, Outcome] | None:
        """Wait for a result; None after `stop_waiting`."""

    def stop_waiting(self) -> None:
        """Make `next_result` in another thread return None soon."""

    def close(self) -> None:
        """End all workers. Not while another thread is inside `next_result`."""


def open_pool(reader: JobRunner, num_workers: int, timeout_s: float) -> DecodePool:
    """A pool of `num_workers` processes, or for 0 one that decodes in this process when asked for a result.

    Raises:
        DataError: for a negative number of workers or a time limit that is not positive.
    """
    if num_workers < 0:
        raise DataError(f"num_workers is {num_workers}; it has to be at least 0")
    if not timeout_s > 0:
        raise DataError(f"clip_timeout_s is {timeout_s}; it has to be above 0 seconds")
    return ProcessPool(reader, num_workers, timeout_s) if num_workers else ThreadPool(reader, timeout_s)


def _timed_out(job: Job, timeout_s: float) -> Failure:
    return Failure(f"{job.media.label}: not decoded within clip_timeout_s={timeout_s:g} s")


class ThreadPool:
    """No processes: each job runs in a thread that is left behind when it misses its deadline."""

    def __init__(self, reader: JobRunner, timeout_s: float) -> None:
        self._reader = reader
        self._timeout_s = timeout_s
        self._tasks: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def next_result(self) -> tuple[Hashable, Outcome] | None:
        assert self._tasks, "no task was submitted"
        task = self._tasks.popleft()
        results: list[ClipInfo | RowRead | Failure] = []

        def work() -> None:
            try:
                results.append(self._reader.run(task.job))
            except DataError as error:
                results.append(Failure.of(error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        deadline = time.monotonic() + self._timeout_s
        while thread.is_alive() and time.monotonic() < deadline:
            stopping.check()
            thread.join(min(_POLL_S, max(0.0, deadline - time.monotonic())))
        if not results:
            if thread.is_alive():
                return task.key, _timed_out(task.job, self._timeout_s)
            return task.key, Failure(f"{task.job.media.label}: the decoder failed, see the traceback above")
        result = results[0]
        if isinstance(result, RowRead):
            assert task.into is not None, "a row needs memory to go to"
            copy_row(result.values, task.into)
            return task.key, ReadDone(result.reader)
        return task.key, result

    def stop_waiting(self) -> None:
        """Results are only worked on inside `next_result`: there is no other thread to wake."""

    def close(self) -> None:
        self._tasks.clear()


class _Process:
    """One decoding process: starting (not ready), idle (no task) or busy (a task with a deadline)."""

    def __init__(self, reader: JobRunner) -> None:
        self.connection, theirs = Pipe()
        self._clip_fd = os.memfd_create("decoded-clip")
        # The same modules as here, wherever they came from, and none from the working folder.
        path = os.pathsep.join(filter(None, sys.path))
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path, PYTHONSAFEPATH="1")
        command = [sys.executable, "-m", "cogvideox.data.worker"]
        command += [str(theirs.fileno()), str(self._clip_fd), str(os.getpid())]
        # Signals that ask to stop reach the whole group. This process decides when its workers end: they inherit that
        # these signals are blocked.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
        try:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(), self._clip_fd), env=environment, stdin=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        theirs.close()
        self.connection.send(reader)
        self.ready = False
        self.task: Task | None = None
        self.deadline = time.monotonic() + _START_LIMIT_S

    def give(self, task: Task, timeout_s: float) -> None:
        self.task = task
        self.deadline = time.monotonic() + timeout_s
        self.connection.send(task.job)

    def take(self) -> Outcome | None:
        """The result that has arrived, or None for the message that the process is ready. Raises EOFError if
        it is dead.
        """
        message = self.connection.recv()
        if message == READY:
            self.ready, self.deadline = True, float("inf")
            return None
        task = self.task
        assert task is not None, "a result without a task"
        self.task, self.deadline = None, float("inf")
        if isinstance(message, ReadDone):
            assert task.into is not None, "a row needs memory to go to"
            read_row(self._clip_fd, task.into)
        assert isinstance(message, Outcome), message
        return message

    def stop(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        os.close(self._clip_fd)

    def exit_status(self) -> int:
        """Of a process that has closed its connection, and therefore is about to end (negative: the signal)."""
        try:
            return self._process.wait(timeout=60.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class ProcessPool:
    """`num_workers` decoding processes, started here and kept until `close`."""

    def __init__(self, reader: JobRunner, num_workers: int, timeout_s: float) -> None:
        self._reader = reader
        self._timeout_s = timeout_s
        self._tasks: deque[Task] = deque()
        self._finished: deque[tuple[Hashable, Outcome]] = deque()
        self._closing = threading.Event()
        self._processes = [_Process(reader) for _ in range(num_workers)]

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def next_result(self) -> tuple[Hashable, Outcome] | None:
        """Wait for a result; None after `close` was asked for.

        Raises:
            RuntimeError: a process did not even start.
            Stopped: the program was asked to stop.
        """
        while not self._finished:
            if threading.current_thread() is threading.main_thread():
                stopping.check()
            if self._closing.is_set():
                return None
            self._hand_out()
            busy = [process for process in self._processes if process.task or not process.ready]
            assert busy, "no task was submitted"
            patience = min(process.deadline for process in busy) - time.monotonic()
            connections: dict[object, _Process] = {process.connection: process for process in busy}
            for connection in wait([process.connection for process in busy], max(0.0, min(patience, _POLL_S))):
                self._receive(connections[connection])
            self._replace_overdue()
        return self._finished.popleft()

    def _hand_out(self) -> None:
        for process in list(self._processes):
            if not self._tasks:
                return
            if process.ready and process.task is None:
                try:
                    process.give(self._tasks[0], self._timeout_s)
                except BrokenPipeError:  # it died while it had nothing to do
                    self._replace(process)
                else:
                    self._tasks.popleft()

    def _receive(self, process: _Process) -> None:
        task = process.task
        try:
            outcome = process.take()
        except (EOFError, ConnectionResetError):
            status = process.exit_status()
            if task is None:
                raise RuntimeError(
                    f"a decoding process could not start (exit status {status}); its message is above"
                ) from None
            reason = f"{task.job.media.label}: the decoding process died with status {status}"
            self._replace(process)
            outcome = Failure(reason)
        if outcome is not None:
            assert task is not None, "a result without a task"
            self._finished.append((task.key, outcome))

    def _replace_overdue(self) -> None:
        now = time.monotonic()
        for process in [process for process in self._processes if process.deadline < now]:
            if process.task is None:
                raise RuntimeError(f"a decoding process was not ready after {_START_LIMIT_S:g} s")
            self._finished.append((process.task.key, _timed_out(process.task.job, self._timeout_s)))
            self._replace(process)

    def _replace(self, process: _Process) -> None:
        process.stop()
        self._processes[self._processes.index(process)] = _Process(self._reader)

    def close(self) -> None:
        self._closing.set()
        for process in self._processes:
            process.stop()
        self._processes.clear()

    def stop_waiting(self) -> None:
        self._closing.set()
