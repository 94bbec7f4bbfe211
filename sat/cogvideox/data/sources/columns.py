"""Which column of a table is which, and from its records to rows. For every layout that lists paths beside captions."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from cogvideox.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Media, suffix_of
from cogvideox.data.report import shown
from cogvideox.data.sources.spec import MAX_CAPTION_BYTES, Reading, Rows
from cogvideox.errors import DataError
from cogvideox.user_files import cut

VIDEO_COLUMNS = (
    *("video", "video_path", "video_file", "video_name", "videos", "path", "file", "file_path", "file_name"),
    *("filename", "filepath", "videopath", "clip", "clip_path", "media", "media_path"),
)
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "texts", "prompts", "description", "caption_text")
IMAGE_COLUMNS = ("image", "image_path", "image_file", "img_path", "first_frame", "first_frame_path")
# Parts of paths that have to be looked at one by one; each stands alone on its line.
_UNUSUAL = ("./", "//", "/\n", "/.\n", "\n/", "\n\n", "\0", "\r")
_KEYS = {"video": "video_column", "caption": "caption_column", "image": "image_column"}


@dataclass(frozen=True)
class Columns:
    """The names of the columns; None where there is none."""

    video: str
    caption: str | None
    image: str | None
    kind: str | None  # "video" or "image" in each row


@dataclass(frozen=True, eq=False)
class Records:
    """Some rows of a table, as columns of one length.

    Args:
        numbers: of each row; where: what stands before the number where a message names the row.
        videos, captions, images, kinds: what stands in these columns; None for a column that isn't there.
    """

    where: str
    numbers: list[int]
    videos: list[Any]
    captions: list[Any] | None
    images: list[Any] | None = None
    kinds: list[Any] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """Parts of the same table, one after the other."""

        def column(name: str) -> Any:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else list(chain.from_iterable(columns))

        return cls(parts[0].where, *(column(name) for name in ("numbers", "videos", "captions", "images", "kinds")))


def choose_columns(names: Sequence[str], reading: Reading, where: str) -> Columns:
    """Find the columns by what the entry says, else by their usual names.

    Raises:
        DataError: a column that was named is not there, none is recognised, or two are; with all columns.
    """
    spec = reading.spec
    image = _column("image", spec.image_column, IMAGE_COLUMNS, names, where)
    video = _column("video", spec.video_column, VIDEO_COLUMNS, names, where)
    if video is None and image is not None:  # a table of images
        video, image = image, None
    if video is None:
        raise DataError(
            f"{where}: no column is known to hold the videos' paths; the columns are {_list(names)}; set video_column "
            "to one of them"
        )
    caption = _column("caption", spec.caption_column, CAPTION_COLUMNS, names, where)
    if caption is None and reading.wanted.missing_captions == "error":
        raise DataError(
            f"{where}: no column is known to hold the captions; the columns are {_list(names)}; set caption_column to "
            "one of them, or data.missing_captions=empty to train without"
        )
    kind = next((name for name in names if _plain(name) == "type"), None)
    return Columns(video, caption, image, kind)


def _column(what: str, named: str | None, usual: Iterable[str], names: Sequence[str], where: str) -> str | None:
    if named is not None:
        if named in names:
            return named
        raise DataError(f"{where}: has no column {named!r} ({_KEYS[what]}); the columns are {_list(names)}")
    found = [name for name in names if _plain(name) in usual]
    if len(found) > 1:
        raise DataError(
            f"{where}: {_list(found)} could all be the {what}; set {_KEYS[what]} to the one that is; the columns are "
            f"{_list(names)}"
        )
    return found[0] if found else None


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _list(names: Iterable[str]) -> str:
    return cut(", ".join(shown(name) for name in names)) or "none"


def looks_like_media(text: str) -> bool:
    """Whether a text ends as the name of a video or an image."""
    return suffix_of(text.strip()) in VIDEO_SUFFIXES + IMAGE_SUFFIXES


class Paths:
    """From paths as written in a list to files, and to names that are the same on every machine.

    base: the folder of the list, or `root`.
    """

    def __init__(self, reading: Reading, base: str) -> None:
        self._base, self._has_root = base, reading.spec.root is not None
        self._absolute_base = os.path.abspath(base) + os.sep
        self._reading = reading
        self._foreign: str | None = None  # the start of absolute paths for which `root` stands
        self.start = "" if base in ("", ".") else base.rstrip(os.sep) + os.sep
        reading.base = base

    def place(self, written: str) -> tuple[str, str]:
        """(name, file) of a path. Raises: ValueError for one that no file can have."""
        if "\0" in written or not written:
            raise ValueError("is no path")
        os.fsencode(written)
        if os.path.isabs(written):
            return self._place_absolute(written)
        path = posixpath.normpath(written) if _needs_norm(written) else written
        return identity(path), self.start + path

    def _place_absolute(self, written: str) -> tuple[str, str]:
        path = posixpath.normpath(written)
        if path.startswith(self._absolute_base):
            return identity(path[len(self._absolute_base) :]), path
        self._reading.has_absolute = True
        if self._has_root:
            if self._foreign is None:
                self._foreign = self._start_elsewhere(path)
            if self._foreign and path.startswith(self._foreign):
                relative = path[len(self._foreign) :]
                return identity(relative), os.path.join(self._base, relative)
        return identity(path), path

    def _start_elsewhere(self, path: str) -> str | None:
        """What of a path has to be taken off to find its file below `root`; None where nothing is found."""
        parts = path.strip("/").split("/")
        for count in range(1, len(parts)):
            if os.path.exists(os.path.join(self._base, *parts[count:])):
                return "/" + "/".join(parts[:count]) + "/"
        return None


def _needs_norm(path: str) -> bool:
    return "./" in path or "//" in path or path.endswith(("/.", "/"))


def identity(path: str) -> str:
    """A name that survives copying between systems that store accents composed and decomposed, or not as UTF-8 at
    all."""
    if path.isascii():
        return path
    text = unicodedata.normalize("NFC", path)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def to_rows(records: Records, paths: Paths, reading: Reading) -> Rows:
    """The records that can be used; what is wrong with others is noted."""
    reading.num_videos += len(records.numbers)
    plain = _plain_rows(records, paths, reading)
    return _each_row(records, paths, reading) if plain is None else plain


def _plain_rows(records: Records, paths: Paths, reading: Reading) -> Rows | None:
    """The same as _each_row gives, at once, of videos with plain names and captions; None where anything is unusual."""
    videos, captions = records.videos, records.captions
    if captions is None or records.images is not None or records.kinds is not None:
        return None
    if set(map(type, videos)) != {str} or set(map(type, captions)) != {str}:
        return None
    written = "\n".join(["", *videos, ""]).lower()
    is_plain = written.isascii() and written.count("\n") == len(videos) + 1
    if (
        not is_plain
        or any(each in written for each in _UNUSUAL)
        or any(f"{each}\n" in written for each in IMAGE_SUFFIXES)
    ):
        return None
    texts = [caption.strip() for caption in captions]
    together = "".join(texts)
    if not all(texts) or "\0" in together or max(map(len, texts)) * 4 > MAX_CAPTION_BYTES or not _is_text(together):
        return None
    prefix = reading.spec.caption_prefix
    if prefix:
        texts = [(prefix + text).strip() for text in texts]
    start = paths.start
    return Rows(videos, [start + video for video in videos], texts)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _each_row(records: Records, paths: Paths, reading: Reading) -> Rows:
    nothing = [None] * len(records.numbers)
    rows = Rows([], medias := [], captions_of := [], [])
    for number, video, caption, image, kind in zip(
        records.numbers,
        records.videos,
        records.captions or nothing,
        records.images or nothing,
        records.kinds or nothing,
        strict=True,
    ):
        where = f"{records.where}{number}"
        try:
            if not isinstance(video, str):
                raise ValueError("is no path")
            name, path = paths.place(video)
        except ValueError:
            text = "is empty" if video in (None, "") else f"is {cut(repr(video))}, which is no path"
            reading.note("incomplete row", where, f"its path {text}")
            continue
        media = Media(path)
        if not is_usable(media, kind, where, reading):
            continue
        captions = read_captions(caption, where, reading)
        if captions is None:
            continue
        first = None
        if isinstance(image, str) and image:
            try:
                first = Media(paths.place(image)[1])
            except ValueError:
                reading.note("incomplete row", where, f"its image is {cut(repr(image))}: no path")
                continue
        rows.names.append(name)
        medias.append(media)
        captions_of.append(captions)
        rows.images.append(first)
    return rows


def is_usable(media: Media, kind: object, where: str, reading: Reading) -> bool:
    """Whether the run takes this kind of file; notes it where not."""
    if kind is not None and kind != "" and kind not in ("video", "image"):
        reading.note("incomplete row", where, f"its type is {cut(repr(kind))}; it has to be video or image")
        return False
    if kind and (kind == "image") != media.is_image:
        reading.note("incomplete row", where, f"its type is {kind}, but the name is {shown(cut(media.label))}")
        return False
    if media.is_image and not reading.wanted.with_images:
        reading.note("image among clips", media.label, "images are samples only with data.max_num_frames=1", "left out")
        return False
    return True


def read_captions(value: object, where: str, reading: Reading) -> tuple[str, ...] | None:
    """The captions that a sample can be trained with; None where it can't be used, which is noted."""
    if isinstance(value, str):
        texts = [value.strip()]
    elif isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        filled = [text for each in value if (text := each.strip())]
        texts = (filled or [""]) if reading.wanted.captions == "random" else [value[0].strip()]
    elif value is None or value == []:
        if reading.wanted.missing_captions == "error":
            reading.note("missing caption", where, "its caption is missing")
            return None
        reading.note("missing caption", where, "trained with an empty caption", "kept")
        texts = [""]
    else:
        reading.note("unreadable caption", where, f"its caption is {cut(repr(value))}; it has to be text")
        return None
    problem = _text_problem(texts)
    if problem:
        reading.note("unreadable caption", where, problem)
        return None
    if texts == [""] and value is not None and value != []:
        reading.note("empty caption", where, "its caption is empty", "kept")
    prefix = reading.spec.caption_prefix
    return tuple((prefix + text).strip() for text in texts) if prefix else tuple(texts)


def _text_problem(texts: Sequence[str]) -> str:
    for text in texts:
        try:
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError:
            return "its caption is no valid text: it holds half of a character"
        if size > MAX_CAPTION_BYTES:
            return f"its caption holds {size / 1e3:.0f} kB, more than {MAX_CAPTION_BYTES // 1000}"
        if "\0" in text:
            return "its caption holds NUL characters"
    return ""


def check_not_numbers(captions: Iterable[object], column: str, names: Sequence[str], where: str) -> None:
    """Refuse a caption column that holds nothing but numbers. Raises: DataError."""
    filled = [each for each in captions if each not in (None, "")]
    if filled and all(map(_is_number, filled)):
        raise DataError(
            f"{where}: column {column!r} holds numbers (the first is {cut(str(filled[0]))}), captions are words; the "
            f"columns are {_list(names)}; set caption_column to the one with the captions"
        )


def _is_number(value: object) -> bool:
    if isinstance(value, int | float):
        return True
    try:
        float(str(value))
    except ValueError:
        return False
    return True
