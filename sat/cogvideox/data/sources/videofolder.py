"""Hugging Face's videofolder: a folder with metadata.csv, metadata.jsonl or metadata.parquet that names its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cogvideox.data.sources import table_csv, table_json, table_parquet
from cogvideox.data.sources.spec import Reading, Rows
from cogvideox.errors import DataError

METADATA = {"metadata.csv": table_csv.read, "metadata.jsonl": table_json.read, "metadata.parquet": table_parquet.read}


def metadata_of(folder: Path) -> Path | None:
    """The folder's file of metadata, if there is one."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def read(reading: Reading) -> Iterator[Rows]:
    """Rows of the metadata; `file_name` is relative to the folder. Raises: DataError."""
    folder = Path(reading.spec.path)
    file = metadata_of(folder)
    if file is None:
        raise DataError(f"{folder}: has no {', '.join(METADATA)}, which a videofolder has")
    inner = reading.spec
    reading.spec = replace(inner, path=str(file), root=inner.root or str(folder))
    yield from METADATA[file.name](reading)
    reading.spec = inner
