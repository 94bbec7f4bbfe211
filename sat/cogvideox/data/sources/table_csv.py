"""Comma or tab separated files: a header, then a row for each clip."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import IO

from cogvideox.data.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    VIDEO_COLUMNS,
    Columns,
    Paths,
    Records,
    check_not_numbers,
    choose_columns,
    looks_like_media,
    to_rows,
)
from cogvideox.data.sources.spec import ROWS_AT_A_TIME, Reading, Rows, check_file, in_batches
from cogvideox.errors import DataError
from cogvideox.text_files import LINE_END
from cogvideox.user_files import cut

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_USUAL = {*VIDEO_COLUMNS, *CAPTION_COLUMNS, *IMAGE_COLUMNS}
_MAX_FIELD = 1_000_000
# Each is a list of its own, and few of them stay below the number at which Python's garbage collector looks through all
# objects: with torch imported, 10,000 at a time take four times as long.
_ROWS_PARSED = 500


def read(reading: Reading) -> Iterator[Rows]:
    """Rows of a .csv or .tsv file: UTF-8, quoted as spreadsheets do, with newlines inside quotes.

    Raises:
        DataError: no text, no header, a row of another width than the header, or columns that are not recognised.
    """
    file = reading.spec.path
    paths = Paths(reading, reading.spec.root or os.path.dirname(file) or ".")
    for some in in_batches(_read_file(reading, file), ROWS_AT_A_TIME // _ROWS_PARSED):
        yield to_rows(Records.joined(some), paths, reading)


def _read_file(reading: Reading, file: str) -> Iterator[Records]:
    """_ROWS_PARSED rows at a time."""
    with open_text(file) as text:
        try:
            yield from _records(reading, file, text)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: {not_text(file, error)}") from error
        except csv.Error as error:
            raise DataError(f"{file}: can't be read as a table: {error}") from error


def _records(reading: Reading, file: str, text: IO[str]) -> Iterator[Records]:
    first = text.readline()
    if "\0" in first:
        raise DataError(f"{file}: holds NUL characters: it is no text in UTF-8")
    separator = _separator(first, Path(file).suffix.lower() == ".tsv")
    text.seek(0)
    csv.field_size_limit(_MAX_FIELD)
    table = csv.reader(text, delimiter=separator, strict=True)
    header = next((row for row in table if row), [])
    if not header:
        raise DataError(f"{file}: is empty")
    columns = _columns(header, reading, file)
    is_first = True
    while True:
        before = table.line_num
        rows = list(islice(table, _ROWS_PARSED))
        if not rows:
            break
        numbers = _line_numbers(rows, before, table.line_num)
        if [] in rows:  # empty lines
            numbers = [number for number, row in zip(numbers, rows, strict=True) if row]
            rows = [row for row in rows if row]
            if not rows:
                continue
        if set(map(len, rows)) != {len(header)}:
            _refuse_width(numbers, rows, header, separator, file)
        records = Records(
            f"{file}:",
            numbers,
            _column(rows, header, columns.video) or [],
            _column(rows, header, columns.caption),
            _column(rows, header, columns.image),
            _column(rows, header, columns.kind),
        )
        if is_first and columns.caption is not None:
            check_not_numbers((records.captions or [])[:100], columns.caption, header, file)
        is_first = False
        yield records
    if is_first:
        raise DataError(f"{file}: holds a header and no rows")


def _line_numbers(rows: list[list[str]], before: int, after: int) -> list[int]:
    """The line on which each row ends."""
    if after - before == len(rows):
        return list(range(before + 1, after + 1))
    lengths = (1 + sum(len(LINE_END.findall(cell)) for cell in row) for row in rows)
    return list(accumulate(lengths, initial=before))[1:]


def _column(rows: list[list[str]], header: list[str], name: str | None) -> list[str] | None:
    if name is None:
        return None
    place = header.index(name)
    return [row[place] for row in rows]


def _refuse_width(numbers: list[int], rows: list[list[str]], header: list[str], separator: str, file: str) -> None:
    """Raises: DataError for the first row of another width than the header."""
    line, row = next((line, row) for line, row in zip(numbers, rows, strict=True) if len(row) != len(header))
    text = f"{file}: line {line} has {len(row)} columns, the header has {len(header)}"
    other = next((each for each in _SEPARATORS if each != separator and each in separator.join(row)), None)
    if len(row) < len(header) and other is not None:
        text += f"; the header is separated by {_SEPARATORS[separator]}, this line by {_SEPARATORS[other]}"
    elif len(row) > len(header):
        text += f"; a text with {_SEPARATORS[separator]} in it has to stand in quotes"
    raise DataError(text)


def _separator(header: str, is_tsv: bool) -> str:
    """The one that gives the most columns with usual names; of equals, the one that the file's name says."""
    order = ["\t", ",", ";", "|"] if is_tsv else list(_SEPARATORS)

    def count(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"').lower() for name in header.split(separator)]
        return sum(name in _USUAL for name in names), 0 if separator == order[0] else len(names) > 1

    return max(order, key=count)


def _columns(header: list[str], reading: Reading, file: str) -> Columns:
    if any(looks_like_media(cell) for cell in header):
        line = cut(", ".join(header))
        raise DataError(
            f"{file}: has no header: its first line is {line!r}; put a line with the columns' names before it, such as "
            "video,caption"
        )
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise DataError(f"{file}: has two columns named {double!r}")
    return choose_columns(header, reading, file)


def open_text(file: str) -> IO[str]:
    """A UTF-8 file, without its byte order mark. Raises: DataError."""
    check_file(file)
    try:
        return open(file, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror or error}") from error


def not_text(file: str, error: UnicodeDecodeError) -> str:
    """What is wrong with a file that isn't UTF-8."""
    with open(file, "rb") as opened:
        begin = opened.read(2)
    if begin in (b"\xff\xfe", b"\xfe\xff"):
        return "is UTF-16; save it as UTF-8"
    byte = error.object[error.start]
    return f"is not UTF-8: a byte {byte:#04x} is wrong; save it as UTF-8"
