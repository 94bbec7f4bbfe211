"""Parquet files with columns of paths and captions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from cogvideox.data.sources.columns import Paths, Records, check_not_numbers, choose_columns, to_rows
from cogvideox.data.sources.spec import ROWS_AT_A_TIME, Reading, Rows, check_file
from cogvideox.errors import DataError


def read(reading: Reading) -> Iterator[Rows]:
    """Rows of a .parquet file, or of all in a folder in the order of their names.

    Raises:
        DataError: no Parquet, columns that are not recognised, or videos inside the file.
    """
    place = Path(reading.spec.path)
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    base = reading.spec.root or str(place if place.is_dir() else place.parent)
    for file in files:
        check_file(str(file))
        try:
            yield from _read_file(str(file), Paths(reading, base), reading)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: can't be read as Parquet: {str(error).splitlines()[0]}") from error


def _read_file(file: str, paths: Paths, reading: Reading) -> Iterator[Rows]:
    with pa.parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        columns = choose_columns(schema.names, reading, file)
        if pa.types.is_struct(schema.field(columns.video).type) or pa.types.is_binary(schema.field(columns.video).type):
            raise DataError(
                f"{file}: column {columns.video!r} holds the videos themselves; Parquet packs them, so they can't be "
                "read in place. Unpack them once: datasets.load_dataset('parquet', data_files=...).save_to_disk("
                "'unpacked'), then args.train_data=[unpacked]"
            )
        names = [columns.video, columns.caption, columns.image, columns.kind]
        number, is_first = 0, True
        for batch in table.iter_batches(ROWS_AT_A_TIME, columns=[name for name in names if name is not None]):
            batch.validate(full=True)
            videos, captions, images, kinds = (
                None if name is None else batch.column(name).to_pylist() for name in names
            )
            if is_first and columns.caption is not None:
                check_not_numbers((captions or [])[:100], columns.caption, schema.names, file)
            numbers = list(range(number, number + len(batch)))
            number, is_first = number + len(batch), False
            yield to_rows(Records(f"{file}, row ", numbers, videos or [], captions, images, kinds), paths, reading)
    if os.path.getsize(file) and not number:
        raise DataError(f"{file}: holds no rows")
