"""Small text files: what is in them becomes text, a dict, or one line of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.user_files import is_possible, parse_json, read_json, read_text, shown, shown_path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_with_and_without_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "a").write_bytes(mark + "höhe\r\n2".encode())
    assert read_text(tmp_path / "a", ConfigError) == "höhe\r\n2"
    (tmp_path / "b").write_bytes(mark + b'{"a": 1}\r\n')
    assert read_json(tmp_path / "b", ConfigError) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe1\x00", "a can't be read: is UTF-16; save it as UTF-8"),
        (b"ab\xff", "a can't be read: is not UTF-8: byte 2 is wrong"),
        (b"a\0b\0", "a can't be read: holds NUL characters"),
        (b"x" * 101, "a can't be read: holds .*more than"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_text(tmp_path / "a", CheckpointError, max_bytes=100)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, what in {
        "pipe": "is not a regular file",
        ".": "is not a regular file",
        "none": "No such file",
        "x" * 5000: r"'.*\.\.\. is no name that a file can have",
        "nul\0": "is no name that a file can have",
    }.items():
        with pytest.raises(ConfigError, match=what) as error:
            read_text(tmp_path / name, ConfigError)
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "f is no valid JSON: it is nested too deeply"),
        ('{"a":' * 100_000, "f is no valid JSON: it is nested too deeply"),
        ("{", "f is no valid JSON: Expecting property name"),
        ("", "f is no valid JSON: Expecting value"),
        ("9" * 5000, "f is no valid JSON: Exceeds the limit"),
        ("[1]", "f holds a list, expected a mapping of names to values"),
        ("null", "f holds a NoneType, expected a mapping"),
    ],
)
def test_what_is_no_json_object(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_json(text, "f", ConfigError)


def test_values_in_messages_are_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'" and shown("x" * 1000) == "'" + "x" * 99 + "..."
    assert shown_path("/a/b c") == "/a/b c" and shown_path("a\n") == r"'a\n'"
    assert is_possible("a/" * 200) and not is_possible("a/" + "ä" * 200) and not is_possible("a\0")
