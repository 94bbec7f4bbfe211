"""Small files that somebody else may have written: whatever is in them becomes text, a dict, or one of our errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cogvideox import text_files
from cogvideox.errors import UserError

MAX_BYTES = 16 * 2**20  # of the largest that is read: the index of a model with thousands of shards is smaller
MAX_NAME_BYTES = 255  # what file systems allow for one name
_SHOWN = 100  # characters of a value in a message


def read_text(file: Path, error: type[UserError], *, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file, without a byte order mark.

    Raises: `error` as `text_files.read_text` does, with the file's name, and for a name that no file can have.
    """
    if not is_possible(file):
        raise error(f"{shown_path(file)} is no name that a file can have")
    try:
        return text_files.read_text(file, max_bytes)
    except text_files.UnreadableTextError as failure:
        raise error(f"{file} can't be read: {failure}") from failure


def read_json(file: Path, error: type[UserError]) -> dict[str, Any]:
    """The JSON object that a file holds. Raises: `error` for anything else."""
    return parse_json(read_text(file, error), str(file), error)


def parse_json(text: str, source: str, error: type[UserError]) -> dict[str, Any]:
    """The JSON object that a text holds. source: what messages call the text. Raises: `error` for anything else."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise error(f"{source} is no valid JSON: it is nested too deeply") from None
    except ValueError as failure:
        raise error(f"{source} is no valid JSON: {failure}") from failure
    if not isinstance(content, dict):
        raise error(f"{source} holds a {type(content).__name__}, expected a mapping of names to values")
    return content


def shown(value: object) -> str:
    """A value in a message: on one line, and cut where it is long."""
    return cut(repr(value))


def cut(text: str) -> str:
    """The beginning of a text that is long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def shown_path(path: str | Path) -> str:
    """A path in a message: one that no file system can hold is cut and quoted."""
    return str(path) if is_possible(path) and str(path).isprintable() else shown(str(path))


def is_possible(path: str | Path) -> bool:
    """Whether a file system can hold a file of this name at all."""
    parts = Path(path).parts
    return "\0" not in str(path) and all(len(part.encode("utf-8", "replace")) <= MAX_NAME_BYTES for part in parts)
