"""Writing a folder or file so that a crash leaves either the old state or the new one, never a half."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cogvideox.errors import CheckpointError

SPACE_MARGIN = 64 * 2**20  # bytes left free beside what we write: indexes, logs and rounding to blocks


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
    free = shutil.disk_usage(existing).free
    if free < needed_bytes + SPACE_MARGIN:
        raise CheckpointError(
            f"not enough space for {folder}: {needed_bytes / 2**30:.2f} GiB needed, "
            f"{free / 2**30:.2f} GiB free on its disk"
        )


@contextmanager
def new_folder(final: Path, needed_bytes: int, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block succeeds, and is removed when it doesn't.

    Raises: CheckpointError as `begin_folder`.
    """
    partial = begin_folder(final, needed_bytes, overwrite=overwrite)
    try:
        yield partial
        commit_folder(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def begin_folder(final: Path, needed_bytes: int, *, overwrite: bool = False) -> Path:
    """Make the temporary twin of `final`, beside it on the same disk; `commit_folder` moves it into place.

    Raises: CheckpointError when `final` exists (unless `overwrite`; an empty folder counts as absent), can't be
        renamed, or there is no space or permission.
    """
    is_taken = any(final.iterdir()) if final.is_dir() else final.exists()
    if is_taken and not overwrite:
        raise CheckpointError(f"{final} exists and is not empty: choose another place, or remove it first")
    if final.resolve() == Path.cwd() or final.is_mount():
        what = "the folder that this runs in" if final.resolve() == Path.cwd() else "a mount point"
        raise CheckpointError(f"{final} is {what}, which can't be replaced as a whole: name a new folder in it")
    check_writable(final.parent, needed_bytes)
    partial = final.parent / f".{final.name}.partial"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():  # left by a run that was killed
            shutil.rmtree(partial)
        partial.mkdir()
    except OSError as error:
        raise CheckpointError(f"cannot write to {final.parent}: {error.strerror}") from error
    return partial


def commit_folder(partial: Path, final: Path) -> None:
    """Bring every file of `partial` to the disk, then rename it; what had the final name is removed last.

    Replacing takes two renames: a crash between them leaves the old folder complete as `.<name>.replaced`.
    """
    for folder, _, names in os.walk(partial):
        for name in names:
            fsync_path(Path(folder) / name)
        fsync_path(Path(folder))
    replaced = final.parent / f".{final.name}.replaced"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    partial.rename(final)
    fsync_path(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    partial = path.parent / f".{path.name}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Force a file's contents, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
