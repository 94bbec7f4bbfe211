"""Finding clips, or images, and their captions in folders of same-named pairs.

Two layouts, also mixed, at any depth: `a/x.mp4` with `a/x.txt` beside it, or `a/videos/b/x.mp4` with
`a/labels/b/x.txt`. Pairs are made from whole path components relative to the root, never by replacing text
inside a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cogvideox.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, suffix_of
from cogvideox.data.report import Problem, shown
from cogvideox.data.sources.columns import identity
from cogvideox.data.sources.spec import MAX_CAPTION_BYTES, Reading, Rows, in_batches
from cogvideox.errors import DataError
from cogvideox.text_files import UnreadableTextError, read_text, split_lines

_VIDEO_FOLDER, _LABEL_FOLDER = "videos", "labels"


def read(reading: Reading) -> Iterator[Rows]:
    """Walk a folder and pair every video with its caption. Reads no video.

    Hidden files and folders (a leading dot) are left out; links to folders are followed. Images count as videos where
    clips have one frame; otherwise those that have captions are reported as left out, others are not looked at.

    Raises:
        DataError: a folder that is missing, none, or without videos (and images, if those count); one that was walked
            for another entry, by links as well.
    """
    root = Path(reading.spec.path)
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {kind}; it has to be a folder of videos with captions")
    files = _Files.walk(root, reading.wanted.with_images, reading.reached)
    reading.num_videos += len(files.videos)
    for videos in in_batches(iter(files.videos)):
        rows = Rows([], paths := list[str](), found := list[tuple[str, ...]]())
        for relative in videos:
            captions = _captions_of(files, relative, reading)
            if captions is not None:
                rows.names.append(identity(relative))
                paths.append(files.start + relative)
                found.append(captions)
        yield rows
    reading.problems += files.captioned_images() + files.captions_without_video()


@dataclass(frozen=True)
class _Files:
    """The files of a root by their paths relative to it, with `/`. Texts: a Path for each takes longer than the disk.

    start: what stands before each to open it.
    """

    root: Path
    start: str
    videos: tuple[str, ...]
    images: tuple[str, ...]  # those that don't count as videos
    captions: dict[str, str]  # by identity of the path without suffix
    used: set[str]

    @classmethod
    def walk(cls, root: Path, with_images: bool, reached: dict[str, Path]) -> _Files:
        videos, images, captions = list[str](), list[str](), dict[str, str]()
        for relative in _walk(root, reached):
            suffix = suffix_of(relative)
            if suffix in VIDEO_SUFFIXES or (with_images and suffix in IMAGE_SUFFIXES):
                videos.append(relative)
            elif suffix in IMAGE_SUFFIXES:
                images.append(relative)
            elif suffix == ".txt":
                captions[identity(_stem(relative))] = relative
        if not videos:
            raise DataError(_nothing_found(root, len(images), with_images))
        videos.sort(key=identity)
        images.sort(key=lambda path: path.split("/"))
        return cls(
            root, os.path.join(str(root), "") if str(root) != "." else "", tuple(videos), tuple(images), captions, set()
        )

    def captioned_images(self) -> list[Problem]:
        """Images that would be samples if clips had one frame. Call it after all videos have their captions."""
        problems = []
        for image in self.images:
            keys = [key for key in _caption_keys(image) if key in self.captions and key not in self.used]
            self.used.update(keys)
            if keys:
                reason = "images are samples only with data.max_num_frames=1"
                problems.append(Problem("image among clips", self.start + image, reason, effect="left out"))
        return problems

    def captions_without_video(self) -> list[Problem]:
        left = sorted(path for key, path in self.captions.items() if key not in self.used)
        return [
            Problem("caption without video", self.start + path, "no video has this name", effect="kept")
            for path in left
        ]


def _nothing_found(root: Path, num_images: int, with_images: bool) -> str:
    looked_for = ", ".join(VIDEO_SUFFIXES + (IMAGE_SUFFIXES if with_images else ()))
    if num_images:
        return (
            f"data folder {root} holds {num_images} images and no video; images are trained on with "
            "data.max_num_frames=1 (not by CogVideoX1.5)"
        )
    what = "video and no image" if with_images else "video"
    return f"data folder {root} holds no {what}; looked for {looked_for} at every depth"


def _walk(root: Path, reached: dict[str, Path]) -> Iterator[str]:
    """The files below a root. reached: the real folders that were walked so far, links followed, and for which root."""

    def refuse(error: OSError) -> None:
        raise DataError(f"data folder {error.filename} can't be read: {error.strerror}")

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        first = reached.get(real)
        if first is root:  # a link that leads back up
            subfolders.clear()
            continue
        if first is not None:
            what = f"{root} is given twice" if first.samefile(root) else f"{first} and {root} both hold {folder}"
            raise DataError(f"data folder {what}: its clips would count twice")
        reached[real] = root
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        start = "" if relative == "." else f"{relative}/"
        yield from (start + name for name in names if not name.startswith("."))


def _captions_of(files: _Files, video: str, reading: Reading) -> tuple[str, ...] | None:
    """The captions of a video, None if it can't be used, which is noted."""
    path = files.start + video
    keys = [key for key in _caption_keys(video) if key in files.captions]
    files.used.update(keys)
    if len(keys) > 1:
        both = " and ".join(shown(files.captions[key]) for key in keys)
        reading.note("ambiguous caption", path, f"{both} both belong to it")
        return None
    if keys:
        return _read_caption(files.start + files.captions[keys[0]], path, reading)
    sibling = _sibling_labels(files.root, video)
    if sibling is not None and os.path.isfile(sibling):
        return _read_caption(sibling, path, reading)
    if reading.wanted.missing_captions == "empty":
        reading.note("missing caption", path, "trained with an empty caption", "kept")
        return ((reading.spec.caption_prefix).strip(),)
    reading.note(
        "missing caption", path, f"no {os.path.basename(_stem(video))}.txt beside it or under {_LABEL_FOLDER}/"
    )
    return None


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _caption_keys(video: str) -> list[str]:
    """Where the caption may be, inside the root: beside, or with one component `videos` turned into
    `labels`.
    """
    stem = _stem(video)
    keys = [identity(stem)]
    if _VIDEO_FOLDER in stem:
        parts = stem.split("/")
        for index, part in enumerate(parts[:-1]):
            if part == _VIDEO_FOLDER:
                keys.append(identity("/".join([*parts[:index], _LABEL_FOLDER, *parts[index + 1 :]])))
    return keys


def _sibling_labels(root: Path, video: str) -> str | None:
    """The root itself may be the folder `videos`, with `labels` beside it."""
    absolute = Path(os.path.abspath(root))
    if absolute.name != _VIDEO_FOLDER:
        return None
    return str(absolute.parent / _LABEL_FOLDER / f"{_stem(video)}.txt")


def _read_caption(file: str, video: str, reading: Reading) -> tuple[str, ...] | None:
    try:
        text = read_text(file, MAX_CAPTION_BYTES)
    except UnreadableTextError as error:
        reading.note("unreadable caption", video, f"{shown(file)} {error}")
        return None
    lines = [line.strip() for line in split_lines(text) or [""]]
    filled = [line for line in lines if line]
    is_random = reading.wanted.captions == "random"
    captions = (filled or [""]) if is_random else lines[:1]
    if captions == [""]:
        reason = "its first line is empty" if filled else "the file is empty"
        reading.note("empty caption", video, f"{shown(file)}: {reason}", "kept")
    if len(filled) > 1 and not is_random:
        reason = f"only the first of {len(filled)} lines is used; data.captions=random takes one of them each time"
        reading.note("multi-line caption", video, reason, "kept")
    return tuple((reading.spec.caption_prefix + caption).strip() for caption in captions)
