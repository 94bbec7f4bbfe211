"""Headers that were looked at before, remembered between runs in a cache folder, never among the user's clips.

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
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from cogvideox.data.decode import ClipInfo
from cogvideox.data.media import Media
from cogvideox.data.timing import Timestamps
from cogvideox.log import get_logger

_log = get_logger(__name__)
# key: 64 bits of path, part of the file, and reader.
_TABLE = """CREATE TABLE IF NOT EXISTS headers (
    key INTEGER PRIMARY KEY, size INTEGER, changed_ns INTEGER, facts TEXT, times BLOB)"""
_FIND = "SELECT key, size, changed_ns, facts, times FROM headers WHERE key IN "
_AT_A_TIME = 1000  # keys of one question
_Stamp = tuple[int, int]  # size in bytes, time of change in nanoseconds
_LOCK_WAIT_S = 2.0  # another run may be writing


def cache_file(folder: str | None = None) -> Path | None:
    """Where headers are remembered: in `folder`, else in `$XDG_CACHE_HOME`, or `~/.cache`. None for a user without a
    home, as in some containers."""
    if folder is not None:
        return Path(folder) / "headers.sqlite3"
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(folder) / "cogvideox-sat" / "headers.sqlite3" if os.path.isabs(folder) else None


class HeaderCache:
    """A table of headers in one file. Whatever goes wrong with it is no reason to stop: then nothing is remembered.

    It is emptied when the code that looks at clips, or its library, is another than the one that wrote it.
    """

    def __init__(self, file: Path | None, reader: str) -> None:
        self._file, self._reader = file, reader
        self._stamps: dict[Media, _Stamp] = {}

    def get(self, medias: Sequence[Media]) -> dict[Media, ClipInfo | None]:
        """What is known of these files as they are now; None for one that is not there."""
        stamps, seen = dict[Media, _Stamp](), dict[str, _Stamp | None]()
        found: dict[Media, ClipInfo | None] = {}
        for media in medias:
            if media.path not in seen:
                seen[media.path] = _stamp(media.path)
            stamp = seen[media.path]
            if stamp is None:
                found[media] = None
            else:
                stamps[media] = stamp
        try:
            with self._connect() as table:
                waiting = {self._key(media): media for media in stamps}
                keys = list(waiting)
                for first in range(0, len(keys), _AT_A_TIME):
                    some = keys[first : first + _AT_A_TIME]
                    for key, size, changed, facts, times in table.execute(f"{_FIND}({','.join(map(str, some))})"):
                        media = waiting[key]
                        if stamps[media] == (size, changed):
                            found[media] = _info(facts, times)
        except (sqlite3.Error, OSError, ValueError, TypeError, zlib.error) as error:
            self._give_up(error)
        self._stamps.update({media: stamp for media, stamp in stamps.items() if media not in found})
        return found

    def put(self, found: Mapping[Media, ClipInfo]) -> None:
        """Remember files that `get` was asked for, as they were then."""
        rows = [
            (self._key(media), *self._stamps[media], json.dumps(_facts(info)), _pack(info.timestamps))
            for media, info in found.items()
            if media in self._stamps
        ]
        try:
            with self._connect() as table:
                table.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _key(self, media: Media) -> int:
        path = media.path if media.path.startswith("/") else os.path.abspath(media.path)
        name = (
            f"{path}\0{self._reader}"
            if media.num_bytes is None
            else f"{path}\0{media.offset}+{media.num_bytes}\0{self._reader}"
        )
        return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little", signed=True)

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


def _stamp(path: str) -> _Stamp | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


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
