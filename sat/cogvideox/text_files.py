"""Text that people write: one rule of what a line is, and one way to read a small file of it.

Captions, prompt files, `latest` and whatever else holds lines go through here.
"""

from __future__ import annotations

import os
import re
import stat

LINE_END = re.compile(r"\r\n|\r|\n")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class UnreadableTextError(ValueError):
    """A file that is no text of the kind expected. The text says why, without the file's name."""


def split_lines(text: str) -> list[str]:
    r"""The lines of a text, without their ends: \n, \r\n or \r, and nothing else.

    str.splitlines also cuts at U+2028, form feeds and others, which stand inside captions. An end after the last line
    opens no further line.
    """
    lines = LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def read_text(file: str | os.PathLike[str], max_bytes: int) -> str:
    """A UTF-8 file as text, without a byte order mark. Never waits: pipes and devices are refused.

    Args:
        file: its path; links are followed.
        max_bytes: what a file of this kind can hold at most.

    Raises:
        UnreadableTextError: no such file, not a regular one, too large, or not UTF-8 text; with the likely cause.
    """
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for somebody to write into it
            raise UnreadableTextError("is not a regular file")
        if status.st_size > max_bytes:
            raise UnreadableTextError(f"holds {_size(status.st_size)}, more than {_size(max_bytes)}")
        with open(file, "rb") as opened:
            content = opened.read(max_bytes)
    except OSError as error:
        raise UnreadableTextError(error.strerror or str(error)) from error
    if content.startswith(_UTF16_MARKS):
        raise UnreadableTextError("is UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableTextError(f"is not UTF-8: byte {error.start} is wrong; save it as UTF-8") from error
    if "\0" in text:
        likely = "UTF-16 without a byte order mark; save it as UTF-8" if _every_other_is_nul(content) else "no text"
        raise UnreadableTextError(f"holds NUL characters: it is probably {likely}")
    return text


def _every_other_is_nul(content: bytes) -> bool:
    """As where Latin letters are written with two bytes each."""
    return max(content[::2].count(0), content[1::2].count(0)) > len(content) // 4


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"
