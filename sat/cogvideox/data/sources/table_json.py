"""JSON: a list of objects, or one object in each line (.jsonl)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from cogvideox.data.sources.columns import Paths, Records, check_not_numbers, choose_columns, to_rows
from cogvideox.data.sources.spec import Reading, Rows, in_batches
from cogvideox.data.sources.table_csv import not_text, open_text
from cogvideox.errors import DataError

_TO_LOOK_AT = 100
_Numbered = tuple[int, dict[str, object]]  # a line and the object on it


def read(reading: Reading) -> Iterator[Rows]:
    """Rows of a .json or .jsonl file.

    Raises:
        DataError: no text, no JSON (with the line), no list of objects, or keys that are not recognised.
    """
    file = reading.spec.path
    paths = Paths(reading, reading.spec.root or os.path.dirname(file) or ".")
    for records in _records(reading, file):
        yield to_rows(records, paths, reading)


def _records(reading: Reading, file: str) -> Iterator[Records]:
    objects = _lines(file) if Path(file).suffix.lower() in (".jsonl", ".ndjson") else _items(file)
    begun = list(islice(objects, _TO_LOOK_AT))
    if not begun:
        raise DataError(f"{file}: holds no objects")
    names = list(dict.fromkeys(key for _, each in begun for key in each))
    columns = choose_columns(names, reading, file)
    if columns.caption is not None:
        check_not_numbers((each.get(columns.caption) for _, each in begun), columns.caption, names, file)
    for batch in in_batches(chain(begun, objects)):
        yield Records(
            f"{file}:",
            [number for number, _ in batch],
            _column(batch, columns.video) or [],
            _column(batch, columns.caption),
            _column(batch, columns.image),
            _column(batch, columns.kind),
        )


def _column(batch: list[_Numbered], name: str | None) -> list[object] | None:
    return None if name is None else [each.get(name) for _, each in batch]


def _lines(file: str) -> Iterator[_Numbered]:
    with open_text(file) as text:
        try:
            for number, line in enumerate(text, 1):
                if line.strip():
                    where = f"{file}:{number}"
                    yield number, _object(_parsed(line, where), where)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: {not_text(file, error)}") from error


def _parsed(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except RecursionError:
        raise DataError(f"{where}: is no valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where}: is no valid JSON: {getattr(error, 'msg', error)}") from error


def _items(file: str) -> Iterator[_Numbered]:
    """The objects of a list, one after the other, so that a large one is never there as a whole."""
    with open_text(file) as opened:
        try:
            text = opened.read()
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: {not_text(file, error)}") from error
    place = _skip(text, 0)
    if not text.startswith("[", place):
        kind = "an object" if text.startswith("{", place) else "no list"
        raise DataError(f'{file}: holds {kind}; expected a list of objects such as [{{"video": ..., "caption": ...}}]')
    decoder = json.JSONDecoder()
    place, line, counted = _skip(text, place + 1), 1, 0
    while not text.startswith("]", place):
        line, counted = line + text.count("\n", counted, place), place
        where = f"{file}:{line}"
        try:
            item, end = decoder.raw_decode(text, place)
        except RecursionError:
            raise DataError(f"{where}: is no valid JSON: it is nested too deeply") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: is no valid JSON: {error.msg}") from error
        except ValueError as error:
            raise DataError(f"{where}: is no valid JSON: {error}") from error
        yield line, _object(item, where)
        place = _skip(text, end)
        if text.startswith(",", place):
            comma, place = place, _skip(text, place + 1)
            if text.startswith("]", place):
                at = 1 + text.count("\n", 0, comma)
                raise DataError(f"{file}:{at}: is no valid JSON: the last comma of the list has to go")
        elif not text.startswith("]", place):
            at = 1 + text.count("\n", 0, place)
            what = "ends inside the list" if place == len(text) else "a comma is missing between two objects"
            raise DataError(f"{file}:{at}: is no valid JSON: {what}")


def _skip(text: str, place: int) -> int:
    """The next place that isn't white space."""
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _object(item: object, where: str) -> dict[str, object]:
    if not isinstance(item, dict):
        raise DataError(f"{where}: holds {json.dumps(item)[:60]}; expected an object with a video and a caption")
    return item
