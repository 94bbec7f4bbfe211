"""Writing a folder or file so that a crash leaves either the old state or the new one, never a half."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cogvideox.errors import CheckpointError

SPACE_MARGIN = 64 * 2**20  # bytes left free beside what we write: indexes, logs and rounding to blocks
_LOCKS: dict[Path, int] = {}  # descriptors of the lock files of the folders that this process is writing


def check_writable(folder: Path, needed_bytes: int) -> None:
    """Check permission and free space before anything is written below `folder`, which need not exist yet.

    Raises: CheckpointError that says how much is needed, how much is free, and where.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise CheckpointError(f"cannot write to {folder}: {existing} is a file, a folder is needed")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write to {folder}: no permission to write in {existing}")
    if shutil.disk_usage(existing).total == 0:  # /proc and the like, whose free space says nothing
        raise CheckpointError(f"cannot write to {folder}: {existing} belongs to the system and holds no files of users")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes + SPACE_MARGIN:
        raise CheckpointError(
            f"not enough space for {folder}: {needed_bytes / 2**30:.2f} GiB needed, "
            f"{free / 2**30:.2f} GiB free on its disk"
        )


@contextmanager
def new_folder(final: Path, needed_bytes: int, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block succeeds, and is removed when it doesn't.

    Raises: CheckpointError as `begin_folder` and `commit_folder`.
    """
    partial = begin_folder(final, needed_bytes, overwrite=overwrite)
    try:
        yield partial
        commit_folder(partial, final)
    except BaseException:
        abandon_folder(partial)
        raise


def begin_folder(final: Path, needed_bytes: int, *, overwrite: bool = False) -> Path:
    """Make the temporary twin of `final`, beside it on the same disk; `commit_folder` moves it into place.

    Until then, or until `abandon_folder`, other processes are refused the same `final`. A link is followed.
    Raises: CheckpointError when `final` exists (unless `overwrite`; an empty folder counts as absent), is being
        written, can't be renamed, or there is no space or permission.
    """
    if final.is_symlink() and not final.exists():
        raise CheckpointError(
            f"{final} is a link to {final.readlink()}, which is not there: make it, or remove the link"
        )
    final = final.resolve()
    _check_free(final, overwrite)
    if final == Path.cwd() or final.is_mount():
        what = "the folder that this runs in" if final == Path.cwd() else "a mount point"
        raise CheckpointError(f"{final} is {what}, which can't be replaced as a whole: name a new folder in it")
    check_writable(final.parent, needed_bytes)
    partial = final.parent / f".{final.name}.partial"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _lock(partial, final)
        try:
            _check_free(final, overwrite)  # another one may have finished since
            _remove(partial)  # left by a run that was killed
            partial.mkdir()
        except BaseException:
            _unlock(partial)
            raise
    except OSError as error:
        raise CheckpointError(f"cannot write to {final.parent}: {error.strerror}") from error
    return partial


def commit_folder(partial: Path, final: Path) -> None:
    """Bring every file of `partial` to the disk, then rename it; what had the final name is removed last.

    Replacing takes two renames: a crash between them leaves the old folder complete as `.<name>.replaced`.
    Raises: CheckpointError when the disk fails; what had the final name is there then, under it.
    """
    final = final.resolve()
    replaced = final.parent / f".{final.name}.replaced"
    try:
        for folder, _, names in os.walk(partial):
            for name in names:
                fsync_path(Path(folder) / name)
            fsync_path(Path(folder))
        if final.exists():
            _remove(replaced)
            _replace(partial, final, replaced)
        else:
            partial.rename(final)
        fsync_path(final.parent)
    except OSError as error:
        raise CheckpointError(f"writing {final} failed: {error.strerror}; nothing was kept") from error
    _remove(replaced)
    _unlock(partial)


def abandon_folder(partial: Path) -> None:
    """Remove what `begin_folder` made, whatever is in it by now; nothing after `commit_folder`."""
    if partial in _LOCKS:
        _remove(partial)
        _unlock(partial)


def _check_free(final: Path, overwrite: bool) -> None:
    is_taken = any(final.iterdir()) if final.is_dir() else final.exists()
    if is_taken and not overwrite:
        raise CheckpointError(f"{final} exists and is not empty: choose another place, or remove it first")


def _replace(partial: Path, final: Path, replaced: Path) -> None:
    try:
        final.rename(replaced)
        partial.rename(final)
    except BaseException:  # Ctrl-C as well: the old folder must not stay hidden
        if not final.exists():
            replaced.rename(final)
        raise


def _remove(path: Path) -> None:
    """As far as it goes, whatever it is."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _lock(partial: Path, final: Path) -> None:
    """Hold a lock file beside `partial` until `_unlock`, or the end of this process."""
    file = _lock_file(partial)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise CheckpointError(f"another process is writing {final}: wait for it, or name another place") from error
        except OSError:
            pass  # a disk without locks, as some network disks are
        if _is_still(file, descriptor):
            _LOCKS[partial] = descriptor
            return
        os.close(descriptor)  # its owner finished, and removed it, in between


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _unlock(partial: Path) -> None:
    descriptor = _LOCKS.pop(partial, None)
    if descriptor is not None:
        with suppress(OSError):
            _lock_file(partial).unlink()
        os.close(descriptor)


def _lock_file(partial: Path) -> Path:
    return partial.with_suffix(".lock")


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step. Raises: CheckpointError when the disk is full or fails."""
    partial = path.parent / f".{path.name}.partial"
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(f"writing {path} failed: {error.strerror}") from error


def fsync_path(path: Path) -> None:
    """Force a file's contents, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
