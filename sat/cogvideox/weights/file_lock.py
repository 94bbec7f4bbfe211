"""One writer at a time: a lock file that a dead process does not hold, on this machine or another."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cogvideox.errors import CheckpointError


@dataclass(frozen=True)
class FileLock:
    """Held until `release`, or the end of this process. is_effective: false on a disk that has no locks."""

    file: Path
    descriptor: int
    is_effective: bool

    def release(self) -> None:
        """Let others have it; the file goes."""
        with suppress(OSError):
            self.file.unlink()
        os.close(self.descriptor)


def lock_file(file: Path, refusal: str) -> FileLock:
    """Make and hold a lock file, in which stands who holds it.

    refusal: what the error says when another process has it; `{owner}` in it becomes e.g. `process 17 on host a`.
    Raises: CheckpointError when it is held; OSError when the file can't be made.
    """
    while True:
        # Not inherited by programs that this process starts, so that none of them holds it longer.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        is_effective = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            raise CheckpointError(refusal.replace("{owner}", owner)) from error
        except OSError:
            is_effective = False  # a disk without locks, as some network disks are
        if _is_still(file, descriptor):
            break
        os.close(descriptor)  # its owner finished, and removed it, in between
    with suppress(OSError):  # a full disk: the lock holds without a name in it
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, this_process().encode(), 0)
    return FileLock(file, descriptor, is_effective)


def this_process() -> str:
    """E.g. `process 17 on host a`."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
