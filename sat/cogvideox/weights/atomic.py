"""Writing a folder or file so that a crash leaves either the old state or the new one, never a half."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cogvideox.errors import CheckpointError
from cogvideox.weights.file_lock import FileLock, lock_file

SPACE_MARGIN = 64 * 2**20  # bytes left free beside what we write: indexes, logs and rounding to blocks
_LOCKS: dict[Path, FileLock] = {}  # of the temporary folders that this process is writing


def check_writable(folder: Path, needed_bytes: int) -> None:
    """Check permission and free space before anything is written below `folder`, which need not exist yet.

    Raises: CheckpointError that says how much is needed, how much is free, and where.
    """
    existing = _existing(folder)
    if not existing.is_dir():
        raise CheckpointError(f"cannot write to {folder}: {existing} is a file, a folder is needed")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write to {folder}: no permission to write in {existing}")
    if shutil.disk_usage(existing).total == 0:  # /proc and the like, whose free space says nothing
        raise CheckpointError(f"cannot write to {folder}: {existing} belongs to the system and holds no files of users")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes + SPACE_MARGIN:
        raise CheckpointError(
            f"not enough space for {folder}: {readable_size(needed_bytes + SPACE_MARGIN)} needed, "
            f"{readable_size(free)} free on its disk"
        )


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def readable_size(num_bytes: float) -> str:
    """E.g. `412 KiB` or `1.3 GiB`: three digits, in the unit that suits them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"


def failed_write(
    path: Path, error: OSError | RuntimeError, partial: Path, needed_bytes: int | None = None
) -> CheckpointError:
    """The error for a file that could not be written, in the terms of who has to make room.

    partial: the temporary folder in which all of the result lies; needed_bytes: what it was to hold. torch's zip writer
    says where in its source it failed but not why, so the disk is asked.
    """
    written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    free = shutil.disk_usage(_existing(partial)).free + written
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif needed_bytes is not None and free < needed_bytes + SPACE_MARGIN:
        reason = os.strerror(errno.ENOSPC)
    else:
        reason = "the disk took no more (a quota, a limit on file sizes, or a fault)"
    return CheckpointError(
        f"writing {path} failed: {reason}; {_room(needed_bytes, free, partial.parent)}; nothing was kept"
    )


def _room(needed_bytes: int | None, free: float, place: Path) -> str:
    needed = "" if needed_bytes is None else f"{readable_size(needed_bytes)} needed, "
    return f"{needed}{readable_size(free)} free on the disk of {place}"


@contextmanager
def new_folder(final: Path, needed_bytes: int, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block succeeds, and is removed when it doesn't.

    Raises: CheckpointError as `begin_folder` and `commit_folder`, and for what the block can't read or write.
    """
    partial = begin_folder(final, needed_bytes, overwrite=overwrite)
    try:
        try:
            yield partial
        except OSError as error:
            raise _failed_block(error, partial, needed_bytes) from error
        commit_folder(partial, final, needed_bytes)
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
    partial = _partial(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _lock(partial, final)
        try:
            settle_interrupted(final)
            _check_free(final, overwrite)  # another one may have finished since
            partial.mkdir()
        except BaseException:
            _unlock(partial)
            raise
    except OSError as error:
        raise CheckpointError(f"cannot write to {final.parent}: {error.strerror}") from error
    return partial


def commit_folder(partial: Path, final: Path, needed_bytes: int | None = None) -> None:
    """Bring every file of `partial` to the disk, then rename it; what had the final name is removed last.

    Replacing takes two renames: a kill between them leaves the old folder complete as `.<name>.replaced`, from where
    `settle_interrupted` takes it back. needed_bytes: what `partial` holds, for a disk that is full after all.
    Raises: CheckpointError when the disk fails; what had the final name is there then, under it.
    """
    final = final.resolve()
    replaced = _replaced(final)
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
        raise failed_write(final, error, partial, needed_bytes) from error
    _remove(replaced)
    _unlock(partial)


def abandon_folder(partial: Path) -> None:
    """Remove what `begin_folder` made, whatever is in it by now; nothing after `commit_folder`."""
    if partial in _LOCKS:
        _remove(partial)
        _unlock(partial)


def _failed_block(error: OSError, partial: Path, needed_bytes: int) -> CheckpointError:
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else partial
    if partial == place or partial in place.parents:
        return failed_write(place, error, partial, needed_bytes)
    return CheckpointError(f"{place}: {error.strerror or error}")


def settle_interrupted(final: Path) -> None:
    """After a kill: what a replacement had put aside gets its name back, and half a folder goes.

    Only for the one who may write `final`. Raises: OSError when the disk fails.
    """
    replaced = _replaced(final)
    if replaced.exists() and not _is_taken(final):
        if final.is_dir():
            final.rmdir()
        replaced.rename(final)
    _remove(replaced)
    _remove(_partial(final))


def remove_folder(final: Path) -> None:
    """Remove a folder, as far as it goes. It loses its name first: a kill leaves none that has only a part of its files
    (`settle_interrupted` finds the rest). Only for the one who may write `final`.
    """
    _remove(_partial(final))
    with suppress(OSError):
        final.rename(_partial(final))
    _remove(_partial(final))


def _partial(final: Path) -> Path:
    return final.parent / f".{final.name}.partial"


def _replaced(final: Path) -> Path:
    return final.parent / f".{final.name}.replaced"


def _is_taken(final: Path) -> bool:
    """An empty folder counts as absent."""
    return any(final.iterdir()) if final.is_dir() else final.exists()


def _check_free(final: Path, overwrite: bool) -> None:
    if _is_taken(final) and not overwrite:
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
    refusal = f"another process is writing {final} ({{owner}}): wait for it, or name another place"
    _LOCKS[partial] = lock_file(partial.with_suffix(".lock"), refusal)


def _unlock(partial: Path) -> None:
    lock = _LOCKS.pop(partial, None)
    if lock is not None:
        lock.release()


def write_text_atomically(path: Path, text: str, needed_bytes: int | None = None) -> None:
    """Replace a small text file in one step.

    needed_bytes: of what it belongs to, where that is more than the text. Raises: CheckpointError when the disk is full
    (with what was needed and what is free) or fails.
    """
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
        room = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing(path.parent)).free
            room = "; " + _room(needed_bytes or len(text.encode()), free, path.parent)
        raise CheckpointError(f"writing {path} failed: {error.strerror}{room}") from error


def fsync_path(path: Path) -> None:
    """Force a file's contents, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
