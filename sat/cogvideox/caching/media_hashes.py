"""Hashes of files' bytes, remembered in the cache by path, size and time of change, for all machines that share it."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cogvideox.data.media import Media
from cogvideox.errors import DataError
from cogvideox.weights.hashes import FAST, new_hash

_BLOCK = 2**20  # bytes per read
_HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class MediaHashes:
    """XXH3 of the bytes of videos, images and weights, each in one small file. root: the cache folder.

    A cache that can't be written remembers nothing, and answers all the same.
    """

    root: str

    def of(self, media: Media) -> str:
        """Hexadecimal. Raises: DataError for a file that is missing, cut short or can't be read."""
        media.check()
        try:
            status = os.stat(media.path)
            stamp = (os.path.abspath(media.path), media.offset, media.num_bytes, status.st_size, status.st_mtime_ns)
            name = hashlib.blake2b(repr(stamp).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
            record = Path(self.root) / "media" / name[:2] / name[2:]
            known = _known(record)
            if known is not None:
                return known
            found = _hash_bytes(media)
        except OSError as error:
            raise DataError(f"{media.label}: can't be read: {error.strerror}") from error
        with suppress(OSError):
            _remember(record, found)
        return found


def _known(record: Path) -> str | None:
    try:
        text = record.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if _HASH.fullmatch(text) else None


def _hash_bytes(media: Media) -> str:
    digest, block = new_hash(FAST), bytearray(_BLOCK)
    with open(media.path, "rb", buffering=0) as file:
        file.seek(media.offset)
        left = os.stat(media.path).st_size if media.num_bytes is None else media.num_bytes
        while left > 0 and (count := file.readinto(memoryview(block)[: min(left, _BLOCK)])):
            digest.update(memoryview(block)[:count])
            left -= count
    return str(digest.hexdigest())


def _remember(record: Path, found: str) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    beside = record.with_name(f"{record.name}.{os.getpid()}.partial")
    beside.write_text(found + "\n", encoding="ascii")
    beside.replace(record)
