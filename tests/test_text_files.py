"""What a line is, and which files are text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cogvideox.text_files import UnreadableTextError, read_text, split_lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\rc\nd", ["a", "b", "c", "d"]),
        ("a\n\nb", ["a", "", "b"]),
        ("a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i", ["a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"]),
    ],
)
def test_lines(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("\ufeffein K\u00e4tzchen\r\n".encode())
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "link", 100) == "ein K\u00e4tzchen\r\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a ship".encode("utf-16"), r"^is UTF-16; save it as UTF-8$"),
        (
            "a ship in a bottle".encode("utf-16-le"),
            r"^holds NUL characters: it is probably UTF-16 without a byte order mark; save",
        ),
        ("ein Schiff".encode("utf-16-be"), "probably UTF-16 without a byte order mark"),
        (b"\x7fELF\x02\x01\x01\x00 and text behind it", r"^holds NUL characters: it is probably no text$"),
        (b"caf\xe9", r"^is not UTF-8: byte 3 is wrong; save it as UTF-8$"),
        (b"x" * 2001, r"^holds 2 kB, more than 2 kB$"),
        (b"x" * 10_000_000, r"^holds 10\.0 MB, more than 2 kB$"),
    ],
)
def test_refused_content(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UnreadableTextError, match=message):
        read_text(tmp_path / "file", 2000)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UnreadableTextError, match="is not a regular file"):
            read_text(place, 100)


def test_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(UnreadableTextError, match="No such file"):
        read_text(tmp_path / "none", 100)
