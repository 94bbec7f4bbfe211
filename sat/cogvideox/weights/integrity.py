"""Whether files are what was written: compared with their manifests in the background, while they are loaded.

Mapping a file skips the checksums of its zip archive, and an optimizer state or a VAE with a flipped bit looks like any
other. Hashing goes at the speed of memory and leaves Python free, so that it costs a load next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

from cogvideox.errors import CheckpointError
from cogvideox.log import get_logger
from cogvideox.weights.checksums import WITHOUT, check_own_checksums
from cogvideox.weights.hashes import FAST, hash_of
from cogvideox.weights.manifest import Recorded, find_record

_log = get_logger(__name__)
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


class FileChecks:
    """Checks files in a thread of its own; a block of `with` in which they are loaded.

    Files that no manifest names pass, unless `verify`: then their own checksums are compared, as far as they have any.
    When the block ends with a CheckpointError and a file turns out to be damaged, that is what is raised: damage is
    the likelier reason for whatever was found inside it.

    files: what will be loaded. Raises: CheckpointError for a file that has not the size that was written, and for
    damaged manifests.
    """

    def __init__(self, files: Iterable[Path], *, verify: bool = False) -> None:
        self._stop = threading.Event()
        checks: list[Callable[[], None]] = []
        for file in dict.fromkeys(files):
            recorded = find_record(file)
            if recorded is not None:
                _check_size(recorded)
                checks.append(partial(check_hash, recorded, self._stop.is_set))
            elif verify and file.suffix in WEIGHT_SUFFIXES:
                checks.append(partial(_check_foreign, file))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._jobs: list[Future[None]] = [self._pool.submit(check) for check in checks]

    def wait(self) -> None:
        """Until every file has been checked. Raises: CheckpointError for the first one that differs."""
        for job in self._jobs:
            job.result()

    def __enter__(self) -> FileChecks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if isinstance(error, CheckpointError):
                self.wait()
        finally:
            self._stop.set()
            self._pool.shutdown(cancel_futures=True)


def check_digest(file: Path, digest: str) -> None:
    """Compare a file's xxh3_128, which is known, with what its manifest says, if there is one.

    Raises: CheckpointError when they differ.
    """
    recorded = find_record(file)
    if recorded is not None and recorded.xxh3_128 != digest:
        raise CheckpointError(_differs(recorded, f"hash {digest[:12]} instead of {recorded.xxh3_128[:12]}"))


def check_hash(recorded: Recorded, is_stopped: Callable[[], bool] = lambda: False) -> None:
    """Hash a file and compare. Raises: CheckpointError when it can't be read or has other contents."""
    _check_size(recorded)
    try:
        digest = hash_of(recorded.file, FAST, is_stopped)
    except OSError as error:
        raise CheckpointError(f"cannot read {recorded.file}: {error.strerror}") from error
    if digest != recorded.xxh3_128 and not is_stopped():
        raise CheckpointError(_differs(recorded, f"hash {digest[:12]} instead of {recorded.xxh3_128[:12]}"))


def _check_size(recorded: Recorded) -> None:
    if not recorded.file.is_file():
        raise CheckpointError(
            f"no file {recorded.file}, which {recorded.manifest} lists: copy the folder again{_or_earlier(recorded)}"
        )
    size = recorded.file.stat().st_size
    if size != recorded.num_bytes:
        raise CheckpointError(_differs(recorded, f"{size:,} bytes instead of {recorded.num_bytes:,}"))


def _differs(recorded: Recorded, how: str) -> str:
    return (
        f"{recorded.file} is damaged, it is not what was written ({how}, by {recorded.manifest}): copy it again"
        f"{_or_earlier(recorded)}. Changed on purpose? Then remove {recorded.manifest.name}"
    )


def earlier_iteration(folder: Path) -> Path | None:
    """The last iteration folder before this one, if there is any."""
    if not folder.name.isdecimal():
        return None
    others = (each for each in folder.absolute().parent.iterdir() if each.is_dir() and each.name.isdecimal())
    earlier = [each for each in others if int(each.name) < int(folder.name)]
    return max(earlier, key=lambda each: int(each.name), default=None)


def _or_earlier(recorded: Recorded) -> str:
    """What else a run could be continued from, for messages."""
    earlier = earlier_iteration(recorded.manifest.parent)
    return "" if earlier is None else f", or take an earlier iteration: {earlier}"


def _check_foreign(file: Path) -> None:
    if check_own_checksums(file):
        _log.info("%s: every checksum inside it is right", file)
    else:
        _log.warning("%s can't be verified: %s", file, WITHOUT)
