"""A data set of Hugging Face's `datasets`, saved on disk with save_to_disk: its videos lie inside Arrow files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cogvideox.data.media import Media
from cogvideox.data.sources.columns import Columns, Paths, check_not_numbers, choose_columns, is_usable, read_captions
from cogvideox.data.sources.spec import Reading, Rows, check_file
from cogvideox.errors import DataError
from cogvideox.user_files import read_json

STATE, DICT = "state.json", "dataset_dict.json"


def read(reading: Reading) -> Iterator[Rows]:
    """Rows of a folder that save_to_disk wrote; videos and images are read in place.

    Raises:
        DataError: a folder of several splits, files that are missing or broken, or columns that are not recognised.
    """
    folder = Path(reading.spec.path)
    if (folder / DICT).is_file():
        splits = [str(each) for each in read_json(folder / DICT, DataError).get("splits", [])]
        raise DataError(f"{folder}: holds several splits; name one: {', '.join(str(folder / each) for each in splits)}")
    state = read_json(folder / STATE, DataError)
    if state.get("_indices_files"):
        raise DataError(f"{folder}: was saved with a selection of rows; save it again after .flatten_indices()")
    try:
        files = [folder / str(each["filename"]) for each in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / STATE}: does not say which files hold the data") from error
    for file in files:
        check_file(str(file))
        try:
            yield from _read_file(file, reading, Paths(reading, reading.spec.root or str(folder)))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: can't be read as Arrow: {str(error).splitlines()[0]}") from error


def _read_file(file: Path, reading: Reading, paths: Paths) -> Iterator[Rows]:
    with pa.memory_map(str(file)) as source:
        whole = source.read_buffer()
        table = pa.ipc.open_stream(whole)
        columns = choose_columns(table.schema.names, reading, str(file))
        first = 0
        for batch in table:
            batch.validate(full=True)
            if first == 0 and columns.caption is not None:
                values = batch.column(columns.caption).slice(0, 100).to_pylist()
                check_not_numbers(values, columns.caption, table.schema.names, str(file))
            yield _to_rows(batch, columns, file, first, whole.address, reading, paths)
            first += len(batch)


def _to_rows(
    batch: pa.RecordBatch, columns: Columns, file: Path, first: int, start: int, reading: Reading, paths: Paths
) -> Rows:
    rows = Rows([], medias := [], captions_of := [], [])
    reading.num_videos += len(batch)
    videos = _medias(batch.column(columns.video), file, first, start, paths)
    captions = [None] * len(batch) if columns.caption is None else batch.column(columns.caption).to_pylist()
    images: list[Media | None] = [None] * len(batch)
    if columns.image is not None:
        images = [
            None if each is None else each[1]
            for each in _medias(batch.column(columns.image), file, first, start, paths)
        ]
    for number, (video, caption, image) in enumerate(zip(videos, captions, images, strict=True), first):
        where = f"{file}, row {number}"
        if video is None:
            reading.note("incomplete row", where, "its video is empty")
            continue
        texts = read_captions(caption, where, reading) if is_usable(video[1], None, where, reading) else None
        if texts is not None:
            rows.names.append(video[0])
            medias.append(video[1])
            captions_of.append(texts)
            rows.images.append(image)
    return rows


def _medias(column: pa.Array, file: Path, first: int, start: int, paths: Paths) -> list[tuple[str, Media] | None]:
    """(name, media) of each row of a column of paths, of bytes, or of both as `datasets` writes them."""
    if pa.types.is_struct(column.type):
        names = {field.name for field in column.type}
        if not {"bytes", "path"} <= names:
            raise DataError(f"{file}: a column holds {column.type}; expected videos as bytes, or their paths")
        written = column.field("path").to_pylist()
        content = column.field("bytes")
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        written, content = [None] * len(column), column
    else:
        written, content = column.to_pylist(), None
    spans = _spans(content, start) if content is not None else [None] * len(column)
    found: list[tuple[str, Media] | None] = []
    for number, (path, span) in enumerate(zip(written, spans, strict=True), first):
        if span is not None:
            name = Path(path).name if isinstance(path, str) else f"row {number}"
            found.append((f"{file.name}/{number}", Media(str(file), span[0], span[1], name)))
        elif isinstance(path, str) and path and "\0" not in path:
            name, place = paths.place(path)
            found.append((name, Media(place)))
        else:
            found.append(None)
    return found


def _spans(column: Any, start: int) -> list[tuple[int, int] | None]:
    """(offset in the file, number of bytes) of each value; None for null."""
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    _, offsets, data = column.buffers()
    if data is None:
        return [None] * len(column)
    places = np.frombuffer(offsets, kind)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    places += data.address - start
    valid = column.is_valid().to_pylist()
    return [
        (int(begin), int(end - begin)) if is_there else None
        for begin, end, is_there in zip(places[:-1], places[1:], valid, strict=True)
    ]


def is_saved(folder: Path) -> bool:
    """Whether save_to_disk wrote this folder."""
    if (folder / DICT).is_file():
        return True
    try:
        return (folder / STATE).is_file() and "_data_files" in json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return False
