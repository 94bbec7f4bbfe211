"""Headers that were looked at before, remembered between runs in the user's cache folder.

`--check` and training look at every clip. A data set of 100,000 clips takes minutes the first time; files whose size
and time of change are the same need no second look.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import av
import numpy as np

from cogvideox.data.decode import ClipInfo
from cogvideox.data.media import Media
from cogvideox.data.timing import Timestamps
from cogvideox.log import get_logger

_log = get_logger(__name__)
_TABLE = """CREATE TABLE IF NOT EXISTS headers (
    path BLOB, reader TEXT, size INTEGER, changed_ns INTEGER, facts TEXT, times BLOB, PRIMARY KEY (path, reader))"""
_FIND = "SELECT facts, times FROM headers WHERE path = ? AND reader = ? AND size = ? AND changed_ns = ?"
_LOCK_WAIT_S = 2.0  # another run may be writing


def cache_file() -> Path | None:
    """Where headers are remembered: `$XDG_CACHE_HOME`, or `~/.cache`; never among the user's clips. None for a user
    without a home, as in some containers."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(folder) / "cogvideox-sat" / "headers.sqlite3" if os.path.isabs(folder) else None


class HeaderCache:
    """A table of headers in one file. Whatever goes wrong with it is no reason to stop: then nothing is remembered.

    It is emptied when the code that looks at clips, or its library, is another than the one that wrote it.
    """

    def __init__(self, file: Path | None, reader: str) -> None:
        self._file, self._reader = file, reader
        self._stamps: dict[Media, tuple[int, int]] = {}

    def get(self, medias: Sequence[Media]) -> dict[Media, ClipInfo]:
        """What is known of these files as they are now."""
        self._stamps = {media: stamp for media in medias if (stamp := _stamp(media.path)) is not None}
        found: dict[Media, ClipInfo] = {}
        try:
            with self._connect() as table:
                for media, stamp in self._stamps.items():
                    row = table.execute(_FIND, (_key(media), self._reader, *stamp)).fetchone()
                    if row is not None:
                        found[media] = ClipInfo(**json.loads(row[0]), timestamps=_unpack(row[1]))
        except (sqlite3.Error, OSError, ValueError, TypeError, zlib.error) as error:
            self._give_up(error)
        return found

    def put(self, found: Mapping[Media, ClipInfo]) -> None:
        """Remember files that `get` was asked for, as they were then."""
        rows = [
            (_key(media), self._reader, *self._stamps[media], json.dumps(_facts(info)), _pack(info.timestamps))
            for media, info in found.items()
            if media in self._stamps
        ]
        try:
            with self._connect() as table:
                table.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _connect(self) -> _Closing:
        if self._file is None:
            raise FileNotFoundError("there is no home folder")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._file, timeout=_LOCK_WAIT_S)
        version = _version()
        if connection.execute("PRAGMA user_version").fetchone()[0] != version:
            connection.execute("DROP TABLE IF EXISTS headers")
            connection.execute(f"PRAGMA user_version = {version}")
        connection.execute(_TABLE)
        return _Closing(connection)

    def _give_up(self, error: Exception) -> None:
        _log.debug("headers of clips are not remembered in %s: %s", self._file, error)
        if self._file is not None and not isinstance(
            error, OSError | sqlite3.OperationalError
        ):  # damaged: the next run starts another
            with suppress(OSError):
                self._file.unlink()


class _Closing:
    """A connection whose with-statement ends the transaction and closes it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self._connection.commit()
        self._connection.close()


def _version() -> int:
    """31 bits of what decides on a header's content: this room's code and the library."""
    digest = hashlib.blake2b(av.__version__.encode(), digest_size=4)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def _key(media: Media) -> bytes:
    path = os.fsencode(os.path.abspath(media.path))
    return path if media.num_bytes is None else path + f"\0{media.offset}+{media.num_bytes}".encode()


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _facts(info: ClipInfo) -> dict[str, object]:
    return {field.name: getattr(info, field.name) for field in dataclasses.fields(info) if field.name != "timestamps"}


def _pack(timestamps: Timestamps) -> bytes:
    """Nanoseconds between frames: a few dozen bytes for a clip of constant rate."""
    return zlib.compress(np.diff(np.rint(timestamps * 1e9).astype(np.int64)).tobytes())


def _unpack(packed: bytes) -> Timestamps:
    steps = np.frombuffer(zlib.decompress(packed), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(steps)]) / 1e9
