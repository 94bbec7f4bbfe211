"""The checksums that weight files carry themselves, for files that no manifest describes."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from cogvideox.errors import CheckpointError
from cogvideox.weights.torch_file import load_file

_BLOCK = 2**20  # bytes per read


WITHOUT = "it has no checksums, its structure is whole; compare its SHA-256 with the one of where it comes from"


def check_own_checksums(file: Path) -> bool:
    """Read a whole file and compare it with the checksums inside it; False when it has none.

    A torch file (zip archive) has a CRC-32 of every tensor. A safetensors file has none, nor has one of torch before
    1.6: there only the structure is checked.
    Raises: CheckpointError for damage.
    """
    try:
        is_zip = zipfile.is_zipfile(file)
        if is_zip:
            _check_crc(file)
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{file} is damaged ({str(error)[:160]}): copy or download it again") from error
    if not is_zip:
        load_file(file)
    return is_zip


def _check_crc(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as record:
                while record.read(_BLOCK):  # the last read compares
                    pass
