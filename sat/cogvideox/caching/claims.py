"""Which process makes an entry, where several fill one cache: a lock file for each entry that is being made.

The lock is the system's, so that whoever is killed holds nothing. On a disk without locks two processes may make the
same entry, and the second one replaces the first by the same.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cogvideox.caching.entries import cannot_write
from cogvideox.errors import CheckpointError
from cogvideox.weights.file_lock import FileLock, lock_file


def claim(root: str, file: Path) -> FileLock | None:
    """Take an entry to make; None where another process has it. What a killed process left of it is removed.

    Raises: DataError where nothing can be written.
    """
    lock = Path(root) / "claims" / f"{file.stem}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        taken = lock_file(lock, "{owner} makes it")
    except CheckpointError:
        return None
    except OSError as error:
        raise cannot_write(lock, error) from error
    if taken.is_effective:
        for left in file.parent.glob(f"{file.name}.*.partial"):
            with suppress(OSError):
                left.unlink()
    return taken


def abandoned(root: str) -> list[Path]:
    """Lock files that no process holds: of those that were killed."""
    found = []
    for file in sorted((Path(root) / "claims").glob("*.lock")):
        with suppress(CheckpointError, OSError):
            lock_file(file, "").release()
            found.append(file)
    return found
