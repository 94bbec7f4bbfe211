"""SHA-256 of a file while it is being written, in a thread of its own.

hashlib lets go of the interpreter lock for large blocks, so hashing takes a second core instead of time.
"""

from __future__ import annotations

import hashlib
import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_PENDING = 2  # blocks that may wait to be hashed: bounds the memory


class BackgroundHash:
    """Hashes what it is handed, in order. The caller must not change a block afterwards."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> BackgroundHash:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def update(self, data: bytes | memoryview) -> None:
        """Add a block; waits while others are pending."""
        self._pending.append(self._pool.submit(self._digest.update, data))
        if len(self._pending) > _PENDING:
            self._pending.pop(0).result()

    def hexdigest(self) -> str:
        """The hash of all blocks, in hexadecimal."""
        for future in self._pending:
            future.result()
        return self._digest.hexdigest()


class FollowingHash:
    """Hashes a file that somebody else appends to: `follow` whenever it has grown, `hexdigest` when it is complete.

    What was just written is read back from the page cache.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._position = 0
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._running: Future[None] | None = None

    def __enter__(self) -> FollowingHash:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def follow(self) -> None:
        """Go on in the background; does nothing while it is at work."""
        if self._running is None or self._running.done():
            self._running = self._pool.submit(self._catch_up)

    def hexdigest(self) -> str:
        """The hash of the whole file, in hexadecimal."""
        if self._running is not None:
            self._running.result()
        self._catch_up()
        return self._digest.hexdigest()

    def _catch_up(self) -> None:
        size = self._path.stat().st_size
        start = self._position - self._position % mmap.ALLOCATIONGRANULARITY
        if size > self._position:
            with (
                self._path.open("rb") as file,
                mmap.mmap(file.fileno(), size - start, offset=start, access=mmap.ACCESS_READ) as view,
            ):
                self._digest.update(memoryview(view)[self._position - start :])
            self._position = size
