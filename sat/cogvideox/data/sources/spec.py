"""What is known of a source before it is read, and what its reader hands on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cogvideox.data.media import Media
from cogvideox.data.report import Problem
from cogvideox.errors import DataError

LAYOUTS = ("pairs", "csv", "json", "parquet", "lines", "videofolder", "datasets", "hub", "webdataset")
MISSING_CAPTIONS = ("error", "empty")
MAX_CAPTION_BYTES = 100_000  # a text encoder reads about 1,000 letters
ROWS_AT_A_TIME = 10_000
Item = TypeVar("Item")


@dataclass(frozen=True)
class SourceSpec:
    """An entry of args.train_data or args.valid_data.

    Args:
        path: a file, a folder, a pattern of tar files, or with layout "hub" the name of a data set on Hugging Face.
        layout: one of LAYOUTS; None: recognised from what is there.
        root: the folder that relative paths in a list are relative to; None: that of the list. Absolute paths of
            another machine are looked for below it.
        video_column, caption_column, image_column: names of columns, or of files for "lines"; None: recognised.
        weight: share of the mixture, above 0, or None; repeats: how often each clip comes in an epoch, above 0.
        caption_prefix: what stands before every caption.
    """

    path: str
    layout: str | None = None
    root: str | None = None
    video_column: str | None = None
    caption_column: str | None = None
    image_column: str | None = None
    weight: float | None = None
    repeats: float = 1.0
    caption_prefix: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a run wants of its sources.

    Args:
        missing_captions: "error", or "empty" to go without.
        captions: "first", or "random" where a clip may have several.
        with_images: whether images are clips of one frame.
    """

    missing_captions: str = "error"
    captions: str = "first"
    with_images: bool = False


@dataclass(frozen=True, eq=False)
class Rows:
    """Some samples of a source, as columns of one length.

    Args:
        names: what sample ids are made of: the same on every machine.
        medias: where the videos are; a text is the path of a file of its own.
        captions: of each sample, at least one; a text is the only one.
        images: explicit first images; empty where there are none at all.
    """

    names: list[str]
    medias: list[Media] | list[str]
    captions: list[tuple[str, ...]] | list[str]
    images: list[Media | None] = field(default_factory=list)


@dataclass(eq=False)
class Reading:
    """A source while it is read: what is asked, and what is found beside the rows.

    Args:
        spec, wanted: what is asked.
        reached: the real folders that were walked so far, and for which entry.
        problems: what there is to say about single items.
        num_videos: how many videos there are, those that can't be used included.
        base: the folder that relative paths are relative to; has_absolute: whether others are absolute.
    """

    spec: SourceSpec
    wanted: Wanted
    reached: dict[str, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    num_videos: int = 0
    base: str = ""
    has_absolute: bool = False

    def note(self, kind: str, label: str, reason: str, effect: str = "error") -> None:
        """Remember a problem."""
        self.problems.append(Problem(kind, label, reason, effect))


def check_file(file: str) -> None:
    """Raises: DataError for what is no regular file: opening a pipe would wait for somebody to write into it."""
    if not os.path.exists(file):
        raise DataError(f"{file}: does not exist")
    if not os.path.isfile(file):
        raise DataError(f"{file}: is not a regular file")


def in_batches(items: Iterator[Item], size: int = ROWS_AT_A_TIME) -> Iterator[list[Item]]:
    """Lists of at most `size` items."""
    while batch := list(islice(items, size)):
        yield batch
