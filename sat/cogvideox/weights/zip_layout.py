"""Whether a torch file's zip archive is what torch.save writes, before torch maps it.

torch maps the archive as a whole and takes from it as many bytes as the pickle says, wherever they end: what a
crafted or mixed-up archive says is compared here with where its records really are.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_MAX_PICKLE = 2**28  # bytes; names, shapes and settings of the largest checkpoints take a few MB
_HEADER = struct.Struct("<4s22xHH")  # of a record in the file: magic, then lengths of its name and of an extra field
_HEADER_MAGIC = b"PK\x03\x04"
_ITEM_SIZES = {
    kind: dtype.itemsize for dtype, kind in torch.storage._dtype_to_storage_type_map().items()
} | {"UntypedStorage": 1}  # fmt: skip


def check_layout(path: Path) -> None:
    """Raises: ValueError that says what is wrong; what zipfile and pickle raise of damaged bytes."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = archive.infolist()
        _check_records(entries, archive.start_dir, file)
        pickled = next((entry for entry in entries if entry.filename.endswith("/data.pkl")), None)
        if pickled is None:
            return  # no file of torch.save: torch says what it is
        if pickled.file_size > _MAX_PICKLE:
            raise ValueError(f"its pickle has {pickled.file_size:,} bytes")
        root = pickled.filename.removesuffix("data.pkl")
        sizes = {entry.filename: entry.file_size for entry in entries}
        for key, num_bytes in _StorageReader(archive.read(pickled)).storages():
            stored = sizes.get(f"{root}data/{key}")
            if stored is None or stored < num_bytes:
                raise ValueError(f"a tensor takes {num_bytes:,} bytes of record {key!r:.40}, which has {stored}")


def _check_records(entries: list[zipfile.ZipInfo], end: int, file: io.BufferedReader) -> None:
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has two records {twice!r:.60}")
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    limits = [*(entry.header_offset for entry in ordered[1:]), end]
    for entry, limit in zip(ordered, limits, strict=True):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"its record {entry.filename!r:.60} is compressed")
        file.seek(entry.header_offset)
        magic, name, extra = _HEADER.unpack(file.read(_HEADER.size))
        if magic != _HEADER_MAGIC or entry.header_offset + _HEADER.size + name + extra + entry.file_size > limit:
            raise ValueError(f"its record {entry.filename!r:.60} overlaps the next one")


class _Inert:
    """Stands for everything that a pickle names: whatever is done with it has no effect."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __call__(self, *_: object) -> _Inert:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """As a list's."""

    def extend(self, values: object) -> None:
        """As a list's."""

    def add(self, value: object) -> None:
        """As a set's."""


class _StorageReader(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Follows a pickle of torch for the storages that it names; builds nothing of what it asks for.

    On Python's own unpickler: the one in C makes and fills a table as large as the highest number in the pickle, which
    is whatever a file says.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._found: list[tuple[str, int]] = []

    def storages(self) -> Iterator[tuple[str, int]]:
        """(key, bytes) of each use. Raises: ValueError for a size below 0, whatever pickle raises."""
        self.load()
        yield from self._found

    def find_class(self, module: str, name: str) -> Any:
        """No class is looked up; a storage type stays its name."""
        return name if module in ("torch", "torch.storage") and name in _ITEM_SIZES else _Inert

    def persistent_load(self, pid: Any) -> _Inert:
        """How torch names a storage: ("storage", type, key, device, elements)."""
        _, kind, key, _, count = pid
        if not isinstance(count, int) or count < 0 or not isinstance(key, str):
            raise ValueError(f"a storage of {count!r:.40} elements")
        self._found.append((key, count * _ITEM_SIZES.get(kind, 1)))
        return _Inert()
