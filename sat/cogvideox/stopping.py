"""Signals that ask a program to stop: SIGINT (Ctrl-C), SIGTERM (kill, a scheduler, a launcher) and SIGHUP (the terminal
was closed; one that `nohup` ignores stays ignored).

The first one stops in order. Where nothing can get lost, `Stopped` is raised on the spot; inside `deferred()` it is
raised by `check()` only, which loops call where they can be left. A second signal ends the process at once, whatever
it is doing. A thread listens as well, because Python runs handlers only between two steps of the main thread, which
may sit in a long call, or wait for another process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_SAVED = 75  # sysexits.h EX_TEMPFAIL: come again. Only where there is a checkpoint to go on from
# Launchers and terminals often send the same request twice, to the group and to each process.
_SAME_REQUEST_S = 1.0
# How long the main thread may stay in a call, where nothing can get lost, before the listening thread ends the process.
_STUCK_S = 10.0
_WAKE_MAIN = signal.SIGURG  # ignored by default; makes the main thread look
_END = 255  # no signal's number: ends the listening thread


class Stopped(BaseException):
    """The program was asked to stop. Like KeyboardInterrupt it is no error, and no `except Exception` meets it.

    why: the signal's name, or what else asked. text: what was kept, for the user. saved: whether a checkpoint holds
    all that was done.
    """

    def __init__(self, signum: int, why: str, text: str = "nothing was saved", saved: bool = False) -> None:
        super().__init__(signum, why, text, saved)
        self.signum, self.why, self.text, self.saved = signum, why, text, saved

    def __str__(self) -> str:
        return f"interrupted ({self.why}); {self.text}"

    @property
    def status(self) -> int:
        return EXIT_SAVED if self.saved else 128 + self.signum

    def after(self, text: str, *, saved: bool) -> Stopped:
        """The same request, with what was kept."""
        return Stopped(self.signum, self.why, text, saved)


class _Request:
    """What has been asked of this process so far."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.why = ""
        self.is_announced = False
        self.is_raised = False
        self.is_saved = False


_request = _Request()
_deferrals = 0
_wake_fd: int | None = None
_announce: Callable[[int, str], object] | None = None
_terminals: tuple[int, ...] = ()


@contextmanager
def listen() -> Iterator[None]:
    """Listen to the signals for the length of a program. Nothing changes outside of the main thread."""
    global _request, _wake_fd, _terminals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _request = _Request()
    _terminals = tuple(fd for fd in (1, 2) if os.isatty(fd))
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    heard = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, _on_signal) for each in (*heard, _WAKE_MAIN)}
    _wake_fd = write_end
    fd_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    thread = threading.Thread(target=_count, args=(read_end,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for each, handler in before.items():
            signal.signal(each, handler)
        _wake_fd = None
        os.write(write_end, bytes([_END]))
        thread.join()
        os.close(write_end)
        os.close(read_end)
        _request = _Request()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a request to stop waits until `check` is called."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1


def check() -> None:
    """Raise Stopped if the program was asked to stop. Loops that take long call this where they can be left."""
    if _request.signum is not None:
        _request.is_raised = True
        text = "everything was saved" if _request.is_saved else "nothing was saved"
        raise Stopped(_request.signum, _request.why, text, _request.is_saved)


def catch_up() -> None:
    """Outside of `deferred`, raise Stopped for a request that came inside of it."""
    if _must_raise():
        check()


def requested() -> bool:
    """Whether the program was asked to stop."""
    return _request.signum is not None


def request(signum: int, why: str) -> None:
    """Ask this process to stop, from any of its threads; once it has been asked, nothing changes."""
    if _request.signum is not None:
        return
    _request.why, _request.signum = why, signum
    _announce_request()
    if _wake_fd is not None:
        os.write(_wake_fd, bytes([_WAKE_MAIN]))
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, _WAKE_MAIN)


def saved() -> None:
    """Everything that was done is kept: from now on any end by a signal has the status EXIT_SAVED."""
    _request.is_saved = True


def on_request(announce: Callable[[int, str], object] | None) -> None:
    """Have a function called with signal and reason of the first request, once and in another thread, so that it is
    announced to the processes that this one works with. None: call nothing from now on; a request that came before is
    announced first."""
    global _announce
    if announce is None:
        _announce_request()
    _announce = announce


def _announce_request() -> None:
    if _announce is not None and not _request.is_announced and _request.signum is not None:
        _request.is_announced = True
        _announce(_request.signum, _request.why)


def _note(signum: int) -> None:
    if _request.signum is None:
        _request.why, _request.signum = signal.Signals(signum).name, signum


def _must_raise() -> bool:
    return _request.signum is not None and not _deferrals and not _request.is_raised


def _on_signal(signum: int, frame: FrameType | None) -> None:
    """In the main thread. The listening thread counts."""
    if signum != _WAKE_MAIN:
        _note(signum)
    if signum == signal.SIGHUP:
        _leave_dead_terminal()
    catch_up()


def _count(read_end: int) -> None:
    """The listening thread: which signal is the first and which one the second."""
    first: float | None = None
    while True:
        ready, _, _ = select.select([read_end], [], [], _STUCK_S if _must_raise() else None)
        if not ready:
            if _must_raise():
                end_at_once()
            continue
        for signum in os.read(read_end, 64):
            if signum == _END:
                return
            if signum not in SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
                _note(signum)
                _announce_request()
            elif time.monotonic() - first >= _SAME_REQUEST_S:
                _end_at_once(signum, "ended at once")


def end_at_once() -> NoReturn:
    """End this process, which was asked to stop and can't do it in order."""
    assert _request.signum is not None, "nobody has asked"
    _end_at_once(_request.signum, "nothing new was saved")


def _end_at_once(signum: int, text: str) -> NoReturn:
    status = EXIT_SAVED if _request.is_saved else 128 + signum
    if os.environ.get("RANK", "0") in ("", "0"):
        os.write(2, f"\ninterrupted ({signal.Signals(signum).name}); {text}\n".encode())
    os._exit(status)


def _leave_dead_terminal() -> None:
    """Writing to a terminal that was closed fails; nobody reads it, and it must not keep a run from being saved."""
    for fd in _terminals:
        if not os.isatty(fd):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, fd)
            os.close(sink)


def say(text: str) -> None:
    """A line on stderr, if anybody can read it."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        pass
