"""Headers that were looked at before.

`--check` and training look at every clip. A data set of 100,000 clips takes minutes the first time.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from cogvideox.data.decode import ClipInfo
from cogvideox.data.file_memory import FileMemory, memory_file
from cogvideox.data.timing import Timestamps


def cache_file(folder: str | None = None) -> Path | None:
    """Where headers are remembered, see memory_file."""
    return memory_file("headers.sqlite3", folder)


class HeaderCache(FileMemory[ClipInfo]):
    """What is known of the headers of files, as `reader` sees them."""

    def __init__(self, file: Path | None, reader: str) -> None:
        super().__init__(file, reader, lambda info: (json.dumps(_facts(info)), _pack(info.timestamps)), _info)


@lru_cache(maxsize=4096)
def _info(facts: str, times: bytes) -> ClipInfo:
    """One object for all clips of which the same is known: of a million there are a few hundred."""
    return ClipInfo(**json.loads(facts), timestamps=_unpack(times))


def _facts(info: ClipInfo) -> dict[str, object]:
    return {field.name: getattr(info, field.name) for field in dataclasses.fields(info) if field.name != "timestamps"}


def _pack(timestamps: Timestamps) -> bytes:
    """Nanoseconds between frames: a few dozen bytes for a clip of constant rate."""
    return zlib.compress(np.diff(np.rint(timestamps * 1e9).astype(np.int64)).tobytes())


def _unpack(packed: bytes) -> Timestamps:
    steps = np.frombuffer(zlib.decompress(packed), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(steps)]) / 1e9
