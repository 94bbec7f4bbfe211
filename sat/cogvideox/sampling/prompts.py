"""Prompts from a file, the configuration or the terminal. No torch here: `--check` reads them too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cogvideox.config.schema import SampleArgs
from cogvideox.errors import DataError
from cogvideox.text_files import UnreadableTextError, read_text, split_lines
from cogvideox.user_files import is_possible, shown_path

MAX_PROMPT_FILE_BYTES = 50_000_000
_IMAGE_MARK = "@@"  # separates prompt and image for image-to-video models


@dataclass(frozen=True)
class Prompt:
    """One line of what to sample. image: the file to start from, for image-to-video models; place: where the line
    stands, for messages."""

    text: str
    image: Path | None = None
    place: str = ""


def read_prompts(args: SampleArgs, *, image_to_video: bool = False, terminal: TextIO | None = None) -> list[Prompt]:
    """The prompts of a run: `args.prompts` when given, else the file, else lines typed at the terminal.

    Raises: DataError when the file can't be read, a line does not suit the model, or there is no prompt at all.
    """
    if args.prompts:
        return parse_prompts(args.prompts, "args.prompts", image_to_video=image_to_video)
    if args.input_type == "txt":
        return read_prompt_file(args.input_file or "", image_to_video=image_to_video)
    terminal = sys.stdin if terminal is None else terminal
    if terminal.isatty():
        form = f"prompt{_IMAGE_MARK}image.png" if image_to_video else "Prompts"
        print(f"{form}, one per line; an empty line starts sampling:", file=sys.stderr, flush=True)
    typed = []
    for line in terminal:
        if not line.strip() and terminal.isatty():
            break
        typed.append(line)
    return parse_prompts(typed, "the terminal", image_to_video=image_to_video)


def read_prompt_file(path: str | Path, *, image_to_video: bool = False) -> list[Prompt]:
    """One prompt per line, UTF-8, blank lines skipped; images are looked for beside the file first. Raises:
    DataError."""
    file = Path(os.path.expanduser(path))
    if not is_possible(file) or os.path.isdir(file) or not os.path.exists(file):
        what = "is a folder" if is_possible(file) and os.path.isdir(file) else "does not exist"
        must = "args.input_file must be a text file with one prompt per line"
        raise DataError(f"prompt file {shown_path(file)} {what}; {must}")
    try:
        lines = split_lines(read_text(file, MAX_PROMPT_FILE_BYTES))
    except UnreadableTextError as error:
        raise DataError(f"prompt file {file} {error}") from error
    return parse_prompts(lines, f"prompt file {file}", image_to_video=image_to_video, folder=file.parent)


def parse_prompts(
    lines: Iterable[str], source: str, *, image_to_video: bool = False, folder: Path | None = None
) -> list[Prompt]:
    """Lines to prompts; blank lines are dropped.

    image_to_video: each line is `prompt@@image`; otherwise none may hold an image. folder: where relative image
    paths are looked for before the working directory.
    Raises: DataError that names the first line that does not suit the model, and how many more there are.
    """
    prompts, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{source}, line {number}"
        try:
            prompts.append(_parse(line, place, folder) if image_to_video else _without_image(line, place))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f" (and {len(problems) - 1} more such lines)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    if not prompts:
        example = f"a red ball rolls{_IMAGE_MARK}ball.png" if image_to_video else "a red ball rolls"
        raise DataError(f"no prompt in {source}: give at least one, for example args.prompts=['{example}']")
    return prompts


def _without_image(line: str, place: str) -> Prompt:
    if _IMAGE_MARK in line:
        raise DataError(
            f"{place}: 'prompt{_IMAGE_MARK}image' is for image-to-video models, this is "
            f"a text-to-video model: remove {_IMAGE_MARK} and the image"
        )
    return Prompt(line.strip(), place=place)


def _parse(line: str, place: str, folder: Path | None) -> Prompt:
    """`prompt@@image`, with the image's path made absolute. Raises: DataError."""
    text, *rest = (part.strip() for part in line.split(_IMAGE_MARK))
    if len(rest) != 1 or not text or not rest[0]:
        what = "has no image" if not rest else "is not complete" if len(rest) == 1 else f"holds {len(rest)} marks"
        raise DataError(
            f"{place}: {line.strip()!r} {what}; this is an image-to-video model: write prompt{_IMAGE_MARK}image.png"
        )
    name = Path(os.path.expanduser(rest[0]))
    places = [place for place in (folder, Path()) if place is not None]
    for candidate in ((each / name).absolute() for each in places):
        if os.path.isfile(candidate):
            return Prompt(text, candidate, place)
    where = "" if name.is_absolute() else " in " + " or ".join(str(each.absolute()) for each in places)
    raise DataError(f"{place}: there is no image file {shown_path(name)}{where}")
