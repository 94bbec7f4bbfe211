"""A folder with one file of paths and one of captions, which belong together line by line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cogvideox.data.sources.columns import Paths, Records, looks_like_media, to_rows
from cogvideox.data.sources.spec import ROWS_AT_A_TIME, Reading, Rows
from cogvideox.errors import DataError
from cogvideox.text_files import UnreadableTextError, read_text, split_lines

VIDEOS, CAPTIONS, IMAGES = "videos.txt", "prompts.txt", "images.txt"
_MAX_BYTES = 2**32


def read(reading: Reading) -> Iterator[Rows]:
    """Rows of videos.txt, prompts.txt and, where it is there, images.txt (first frames). `video_column`,
    `caption_column` and `image_column` name other files.

    Raises:
        DataError: a file that is missing or no text, or files of different lengths.
    """
    spec, folder = reading.spec, Path(reading.spec.path)
    videos = folder / (spec.video_column or VIDEOS)
    captions = folder / (spec.caption_column or CAPTIONS)
    images = folder / (spec.image_column or IMAGES)
    paths = Paths(reading, spec.root or str(folder))
    video_lines, caption_lines = _lines(videos), _lines(captions)
    image_lines = _lines(images) if spec.image_column or images.is_file() else None
    for file, lines in ((captions, caption_lines), (images, image_lines)):
        if lines is not None and len(lines) != len(video_lines):
            raise DataError(_different(videos, video_lines, file, lines))
    video_lines = [line.strip() for line in video_lines]
    for first in range(0, len(video_lines), ROWS_AT_A_TIME):
        some = slice(first, first + ROWS_AT_A_TIME)
        numbers = list(range(first + 1, first + 1 + len(video_lines[some])))
        image_column = None if image_lines is None else [line.strip() for line in image_lines[some]]
        yield to_rows(
            Records(f"{videos}:", numbers, video_lines[some], caption_lines[some], image_column), paths, reading
        )


def _lines(file: Path) -> list[str]:
    try:
        lines = split_lines(read_text(file, _MAX_BYTES))
    except UnreadableTextError as error:
        raise DataError(f"{file}: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _different(videos: Path, video_lines: list[str], file: Path, lines: list[str]) -> str:
    text = f"{videos} has {len(video_lines)} lines and {file.name} has {len(lines)}; they belong together line by line"
    place = _first_shifted(video_lines, lines)
    return f"{text}; look at {place}" if place else text


def _first_shifted(video_lines: list[str], lines: list[str]) -> str:
    """The first line that seems to be out of place: an empty one, a caption among paths, or a line in which the two
    files stop sharing the words of the file's name."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            return f"line {number} of the second, which is empty"
    for number, line in enumerate(video_lines, 1):
        if not line.strip():
            return f"line {number} of the first, which is empty"
        if not looks_like_media(line):
            return f"line {number} of the first, which is no video: {line.strip()[:60]!r}"
    shared = [_shares_words(video, line) for video, line in zip(video_lines, lines, strict=False)]
    if any(shared):
        last = max(number for number, value in enumerate(shared, 1) if value)
        return f"line {last + 1}, from which on no caption has a word of its video's name" if last < len(shared) else ""
    return f"line {min(len(lines), len(video_lines)) + 1}, the first that has no partner"


def _shares_words(video: str, caption: str) -> bool:
    stem = os.path.splitext(os.path.basename(video.strip()))[0].lower()
    words = {word for word in stem.replace("-", "_").split("_") if len(word) > 2 and not word.isdigit()}
    return bool(words & set(caption.lower().replace(",", " ").replace(".", " ").split()))
