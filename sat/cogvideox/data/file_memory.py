"""What was found out about files, remembered between runs in a cache folder, never among the user's clips.

Files whose size and time of change are the same need no second look.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import av
import numpy as np

from cogvideox.data.media import Media
from cogvideox.log import get_logger

_log = get_logger(__name__)
# key: 64 bits of path, part of the file, and who looked. The columns have the names of what headers keep in them.
_TABLE = """CREATE TABLE IF NOT EXISTS headers (
    key INTEGER PRIMARY KEY, size INTEGER, changed_ns INTEGER, facts TEXT, times BLOB)"""
_FIND = "SELECT key, size, changed_ns, facts, times FROM headers WHERE key IN "
_AT_A_TIME = 1000  # keys of one question
_Stamp = tuple[int, int]  # size in bytes, time of change in nanoseconds
_LOCK_WAIT_S = 2.0  # another run may be writing
Known = TypeVar("Known")


def memory_file(name: str, folder: str | None = None) -> Path | None:
    """Where something is remembered: in `folder`, else in `$XDG_CACHE_HOME`, or `~/.cache`. None for a user without a
    home, as in some containers."""
    if folder is not None:
        return Path(folder) / name
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(folder) / "cogvideox-sat" / name if os.path.isabs(folder) else None


class FileMemory(Generic[Known]):
    """A table in one file. Whatever goes wrong with it is no reason to stop: then nothing is remembered.

    It is emptied when the code that looks at clips, or its library, is another than the one that wrote it.

    Args:
        file: of the table; None remembers nothing.
        looker: who looked, and how: what others found is not known.
        to_row, from_row: what is known as a text and bytes, and back; `from_row` raises ValueError or TypeError for
            rows that it doesn't understand.
    """

    def __init__(
        self,
        file: Path | None,
        looker: str,
        to_row: Callable[[Known], tuple[str, bytes]],
        from_row: Callable[[str, bytes], Known],
    ) -> None:
        self._file, self._looker = file, looker
        self._to_row, self._from_row = to_row, from_row
        self._stamps: dict[Media, _Stamp] = {}

    def get(self, medias: Sequence[Media]) -> dict[Media, Known | None]:
        """What is known of these files as they are now; None for one that is not there."""
        found: dict[Media, Known | None] = {}
        waiting: dict[int, tuple[Media, _Stamp]] = {}  # by key
        path, stamp = None, None
        for media, key in zip(medias, self._keys(medias), strict=True):
            if media.path != path:  # the parts of a file come one after the other
                path, stamp = media.path, _stamp(media.path)
            if stamp is None:
                found[media] = None
            else:
                waiting[key] = media, stamp
        try:
            with self._connect() as table:
                keys = list(waiting)
                for first in range(0, len(keys), _AT_A_TIME):
                    some = keys[first : first + _AT_A_TIME]
                    for key, size, changed, text, content in table.execute(f"{_FIND}({','.join(map(str, some))})"):
                        media, stamp = waiting[key]
                        if stamp == (size, changed):
                            found[media] = self._from_row(text, content)
                            del waiting[key]
        except (sqlite3.Error, OSError, ValueError, TypeError, zlib.error) as error:
            self._give_up(error)
        self._stamps.update(waiting.values())
        return found

    def put(self, found: Mapping[Media, Known]) -> None:
        """Remember files that `get` was asked for, as they were then."""
        asked = [media for media in found if media in self._stamps]
        rows = [
            (key, *self._stamps[media], *self._to_row(found[media]))
            for key, media in zip(self._keys(asked), asked, strict=True)
        ]
        try:
            with self._connect() as table:
                table.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _keys(self, medias: Sequence[Media]) -> list[int]:
        begun, hashes = hashlib.blake2b(os.fsencode(f"{self._looker}\0"), digest_size=8), list[bytes]()
        for media in medias:
            path = media.path if media.path.startswith("/") else os.path.abspath(media.path)
            each = begun.copy()
            each.update(os.fsencode(f"{path}\0{media.offset}+{media.num_bytes}" if media.is_part else path))
            hashes.append(each.digest())
        return np.frombuffer(b"".join(hashes), "<i8").tolist()

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
        _log.debug("what was seen of clips is not remembered in %s: %s", self._file, error)
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
