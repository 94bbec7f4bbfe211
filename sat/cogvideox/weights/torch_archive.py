"""The zip archive that torch.load reads, written record by record.

torch's own writer computes the CRC-32 that the format asks for at a tenth of zlib's speed, which made writing a
checkpoint several times as slow as copying it. Records are stored uncompressed and begin at multiples of 64 bytes, so
that torch.load(mmap=True) can use them in place.

Source: torch's serialization notes ("torch.save() file format"), and the archives that torch.save writes.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

_ALIGNMENT = 64
_VERSION = b"3\n"  # of the archive's layout, as torch.save writes it
_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is written
_LOCAL_HEADER = 30  # bytes, without name and extra fields
_ZIP64_FIELD = 20
_PADDING_ID = 0x4246  # torch's own id for the field that pads a record's start


class _Unbuffered(io.FileIO):
    """A file without Python's buffer, through which large writes are several times slower."""

    def write(self, data: Any) -> int:
        """All of the data: one system call takes 2 GiB at most, and less when the disk fills up."""
        rest = memoryview(data).cast("B")
        while len(rest):
            rest = rest[super().write(rest) or 0 :]
        return len(data)


class TorchArchive:
    """Writes one file; a context manager that completes it. Raises: OSError."""

    def __init__(self, path: Path) -> None:
        self._stem = path.stem
        self._file = _Unbuffered(path, "w+")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> TorchArchive:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        if kind is None:
            self.write(".format_version", b"1")
            self.write(".storage_alignment", str(_ALIGNMENT).encode())
            self.write("byteorder", sys.byteorder.encode())
            self.write("version", _VERSION)
        try:
            self._zip.close()
        finally:
            self._file.close()

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Add a record, such as `data.pkl` or `data/0`."""
        info = zipfile.ZipInfo(f"{self._stem}/{name}", _DATE)
        fixed = _LOCAL_HEADER + len(info.filename.encode()) + _ZIP64_FIELD + 4
        padding = -(self._zip.start_dir + fixed) % _ALIGNMENT
        info.extra = struct.pack("<HH", _PADDING_ID, padding) + b"Z" * padding
        with self._zip.open(info, "w", force_zip64=True) as record:
            record.write(data)
