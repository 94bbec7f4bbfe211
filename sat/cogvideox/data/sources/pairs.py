"""Finding clips, or images, and their captions in folders of same-named pairs.

Two layouts, also mixed, at any depth: `a/x.mp4` with `a/x.txt` beside it, or `a/videos/b/x.mp4` with
`a/labels/b/x.txt`. Pairs are made from whole path components relative to the root, never by replacing text
inside a path.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cogvideox.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Media, suffix_of
from cogvideox.data.order import hash_words
from cogvideox.data.report import Problem, shown
from cogvideox.data.sample import Sample
from cogvideox.errors import DataError
from cogvideox.text_files import UnreadableTextError, read_text, split_lines

MISSING_CAPTIONS = ("error", "empty")
MAX_CAPTION_BYTES = 100_000  # a text encoder reads about 1,000 letters
_VIDEO_FOLDER, _LABEL_FOLDER = "videos", "labels"


@dataclass(frozen=True)
class Pairs:
    """What the folders hold: samples in order (roots as given, then by relative path) and what is wrong with
    captions. num_videos: files found, images included.
    """

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    num_videos: int


def find_pairs(roots: Sequence[str | Path], missing_captions: str = "error", *, with_images: bool = False) -> Pairs:
    """Walk the roots and pair every video with its caption. Reads no video.

    Hidden files and folders (a leading dot) are left out; links to folders are followed.

    Args:
        roots: the folders.
        missing_captions: "error", or "empty" to go without.
        with_images: whether image files are samples too, as where clips have one frame. Otherwise images that
            have captions are reported as left out, others are not looked at.

    Raises:
        DataError: no roots; a root that is missing, no folder, or without videos (and images, if those count); a
            folder that is in two roots, by links as well; an unknown `missing_captions`. Problems of single items
            are in the result instead.
    """
    if missing_captions not in MISSING_CAPTIONS:
        raise DataError(f"missing_captions is {missing_captions!r}; it has to be one of {', '.join(MISSING_CAPTIONS)}")
    _check_roots(roots)
    samples: list[Sample] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    num_videos = 0
    reached: dict[str, Path] = {}
    for source, root in enumerate(roots):
        files = _Files.walk(Path(root), with_images, reached)
        num_videos += len(files.videos)
        for relative in files.videos:
            caption, found = _caption_of(files, relative, missing_captions)
            problems += found
            if caption is not None:
                name = _identity(relative)
                seen[name] = seen.get(name, -1) + 1
                sample_id = hash_words("sample", name, seen[name])
                samples.append(Sample(Media(str(files.root / relative)), (caption,), sample_id, source))
        problems += files.captioned_images() + files.captions_without_video()
    return Pairs(tuple(samples), tuple(problems), num_videos)


def _check_roots(roots: Sequence[str | Path]) -> None:
    if not roots:
        raise DataError("no data folder is given; args.train_data has to name at least one")
    for root in roots:
        if not Path(root).is_dir():
            kind = "is a file" if Path(root).exists() else "does not exist"
            raise DataError(f"data folder {root} {kind}; it has to be a folder of videos with captions")


@dataclass(frozen=True)
class _Files:
    """The files of a root by their paths relative to it."""

    root: Path
    videos: tuple[PurePosixPath, ...]
    images: tuple[PurePosixPath, ...]  # those that don't count as videos
    captions: dict[str, PurePosixPath]  # by identity of the path without suffix
    used: set[str]

    @classmethod
    def walk(cls, root: Path, with_images: bool, reached: dict[str, Path]) -> _Files:
        videos: list[PurePosixPath] = []
        images: list[PurePosixPath] = []
        captions: dict[str, PurePosixPath] = {}
        for relative in _walk(root, reached):
            suffix = suffix_of(relative.name)
            if suffix in VIDEO_SUFFIXES or (with_images and suffix in IMAGE_SUFFIXES):
                videos.append(relative)
            elif suffix in IMAGE_SUFFIXES:
                images.append(relative)
            elif suffix == ".txt":
                captions[_identity(relative.with_suffix(""))] = relative
        if not videos:
            raise DataError(_nothing_found(root, len(images), with_images))
        return cls(root, tuple(sorted(videos, key=_identity)), tuple(sorted(images)), captions, set())

    def captioned_images(self) -> list[Problem]:
        """Images that would be samples if clips had one frame. Call it after all videos have their captions."""
        problems = []
        for image in self.images:
            keys = [key for key in _caption_keys(self.root, image) if key in self.captions and key not in self.used]
            self.used.update(keys)
            if keys:
                reason = "images are samples only with data.max_num_frames=1"
                problems.append(Problem("image among clips", str(self.root / image), reason, effect="left out"))
        return problems

    def captions_without_video(self) -> list[Problem]:
        left = sorted(str(path) for key, path in self.captions.items() if key not in self.used)
        return [
            Problem("caption without video", str(self.root / path), "no video has this name", effect="kept")
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


def _walk(root: Path, reached: dict[str, Path]) -> Iterator[PurePosixPath]:
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
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (relative / name for name in names if not name.startswith("."))


def _identity(path: PurePosixPath) -> str:
    """A name that survives copying between systems that store accents composed and decomposed, or not as
    UTF-8 at all.
    """
    text = unicodedata.normalize("NFC", str(path))
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _caption_of(files: _Files, video: PurePosixPath, missing: str) -> tuple[str | None, list[Problem]]:
    """The caption of a video, None if it can't be used, and what is to be said about it."""
    path = str(files.root / video)
    keys = [key for key in _caption_keys(files.root, video) if key in files.captions]
    files.used.update(keys)
    if len(keys) > 1:
        both = " and ".join(shown(str(files.captions[key])) for key in keys)
        return None, [Problem("ambiguous caption", path, f"{both} both belong to it")]
    if keys:
        return _read_caption(files.root / files.captions[keys[0]], path)
    sibling = _sibling_labels(files.root, video)
    if sibling is not None and sibling.is_file():
        return _read_caption(sibling, path)
    if missing == "empty":
        return "", [Problem("missing caption", path, "trained with an empty caption", effect="kept")]
    return None, [Problem("missing caption", path, f"no {video.stem}.txt beside it or under {_LABEL_FOLDER}/")]


def _caption_keys(root: Path, video: PurePosixPath) -> list[str]:
    """Where the caption may be, inside the root: beside, or with one component `videos` turned into
    `labels`.
    """
    stem = video.with_suffix("")
    keys = [_identity(stem)]
    for index, part in enumerate(stem.parts[:-1]):
        if part == _VIDEO_FOLDER:
            keys.append(_identity(PurePosixPath(*stem.parts[:index], _LABEL_FOLDER, *stem.parts[index + 1 :])))
    return keys


def _sibling_labels(root: Path, video: PurePosixPath) -> Path | None:
    """The root itself may be the folder `videos`, with `labels` beside it."""
    absolute = Path(os.path.abspath(root))
    if absolute.name != _VIDEO_FOLDER:
        return None
    return absolute.parent / _LABEL_FOLDER / video.with_suffix(".txt")


def _read_caption(file: Path, video: str) -> tuple[str | None, list[Problem]]:
    try:
        text = read_text(file, MAX_CAPTION_BYTES)
    except UnreadableTextError as error:
        return None, [Problem("unreadable caption", video, f"{shown(str(file))} {error}")]
    lines = split_lines(text) or [""]
    caption = lines[0].strip()
    problems: list[Problem] = []
    if not caption:
        reason = "its first line is empty" if text.strip() else "the file is empty"
        problems.append(Problem("empty caption", video, f"{shown(str(file))}: {reason}", effect="kept"))
    filled = sum(bool(line.strip()) for line in lines)
    if filled > 1:
        problems.append(
            Problem("multi-line caption", video, f"only the first of {filled} lines is used", effect="kept")
        )
    return caption, problems
