"""Hashes of files, and files that are hashed while they are written.

XXH3 with 128 bits covers every byte at the speed of memory, so that it costs a conversion next to nothing. It tells
files apart but doesn't withstand an attacker. SHA-256 does, at about 0.6 s per GB, and Hugging Face shows it of files.
Source: the reference implementation of XXH3, in the package xxhash (`xxh128sum` on the command line).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import xxhash

HashName = Literal["xxh3_128", "sha256"]
FAST: HashName = "xxh3_128"
SHA256: HashName = "sha256"
_BLOCK = 2**20  # bytes per read: large enough that hashing, not reading, is the limit


# Bytes per write, as many as sendfile() takes. Larger ones gain nothing, and let Linux take page cache in blocks of
# megabytes: on a virtual machine whose free memory goes back to its host that cost 2 to 3 s per GB, this 0.3 to 0.6 s.
_PIECE = 2**16
# After so many, the system is asked to write them to the disk and to free their memory. So fsync has little to wait
# for, and a file of many GB pushes nothing else out of memory.
_FLUSH_EVERY = 2**26  # bytes


def new_hash(name: HashName) -> Any:
    """A hash object with `update` and `hexdigest`."""
    return xxhash.xxh3_128() if name == FAST else hashlib.sha256()


def hash_of(path: Path, name: HashName, is_stopped: Callable[[], bool] = lambda: False) -> str:
    """The hash of a file, in hexadecimal; it is read in blocks. is_stopped: asked now and then whether to give up."""
    digest, block = new_hash(name), bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(block)) and not is_stopped():
            digest.update(memoryview(block)[:count])
    return str(digest.hexdigest())


class HashedFile:
    """A new file that is hashed while it is written, with XXH3. Raises: OSError as open() and write() do."""

    def __init__(self, path: Path) -> None:
        self.num_bytes = self._flushed = 0
        self._file = path.open("wb", buffering=0)
        self._digest = new_hash(FAST)

    @property
    def xxh3_128(self) -> str:
        """Of what was written so far, in hexadecimal."""
        return str(self._digest.hexdigest())

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`: bytes in any shape."""
        rest = memoryview(data).cast("B")
        while len(rest):
            count = self._file.write(rest[:_PIECE])  # may be less at the end of a disk; the next call raises then
            self._digest.update(rest[:count])
            self.num_bytes += count
            rest = rest[count:]
            if self.num_bytes - self._flushed >= _FLUSH_EVERY:
                self._flushed = self.num_bytes
                os.posix_fadvise(self._file.fileno(), 0, self._flushed, os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
