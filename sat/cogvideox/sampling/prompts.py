"""What to sample: prompts from a file, the configuration or the terminal, and one job per video."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cogvideox.config.schema import SampleArgs
from cogvideox.errors import DataError

VIDEO_NAME = "000000.mp4"
LATENT_NAME = "latent.safetensors"
_IMAGE_MARK = "@@"  # separates prompt and image in the files of image-to-video models
_NAME_CHARACTERS = 120
_NAME_BYTES = 240  # file systems allow 255 bytes per name


@dataclass(frozen=True)
class SampleJob:
    """One video to make.

    prompt_index: place of the prompt in its list; sample_index: 0.. for the videos of one prompt;
    seed: with prompt_index it decides the noise; folder: where the files go.
    """

    prompt: str
    prompt_index: int
    sample_index: int
    seed: int
    folder: Path

    @property
    def video_path(self) -> Path:
        return self.folder / VIDEO_NAME

    @property
    def latent_path(self) -> Path:
        return self.folder / LATENT_NAME


def read_prompts(args: SampleArgs, terminal: TextIO | None = None) -> list[str]:
    """The prompts of a run: `args.prompts` when given, else the file, else lines typed at the terminal.

    Raises: DataError when the file can't be read or there is no prompt at all.
    """
    if args.prompts:
        return check_prompts(args.prompts, "args.prompts")
    if args.input_type == "txt":
        return read_prompt_file(args.input_file or "")
    terminal = sys.stdin if terminal is None else terminal
    if terminal.isatty():
        print("Prompts, one per line; an empty line starts sampling:", file=sys.stderr, flush=True)
    typed = []
    for line in terminal:
        if not line.strip() and terminal.isatty():
            break
        typed.append(line)
    return check_prompts(typed, "the terminal")


def read_prompt_file(path: str | Path) -> list[str]:
    """One prompt per line, UTF-8, blank lines skipped. Raises: DataError."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"prompt file {file} {what}; args.input_file must be a text file with one prompt per line")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompt file {file} can't be read as UTF-8 text: {error}") from error
    return check_prompts(lines, f"prompt file {file}")


def check_prompts(lines: Iterable[str], source: str) -> list[str]:
    """Strip, drop blank lines, refuse what a text-to-video model can't use. Raises: DataError."""
    prompts = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if _IMAGE_MARK in text:
            raise DataError(
                f"{source}, line {number}: 'prompt{_IMAGE_MARK}image' is for image-to-video models, this is "
                f"a text-to-video model: remove {_IMAGE_MARK} and the image"
            )
        if text:
            prompts.append(text)
    if not prompts:
        raise DataError(f"no prompt in {source}: give at least one, for example args.prompts=['a red ball rolls']")
    return prompts


def plan_jobs(prompts: Sequence[str], num_samples: int, seed: int, output_dir: str | Path) -> list[SampleJob]:
    """`num_samples` videos for each prompt, with seeds seed, seed + 1, ...

    Folders are `<output_dir>/<n>_<prompt>/<k>`, n the place of the prompt and k that of the sample, both from
    0.
    """
    root = Path(output_dir).expanduser()
    return [
        SampleJob(prompt, n, k, seed + k, root / f"{n}_{folder_name(prompt)}" / str(k))
        for n, prompt in enumerate(prompts)
        for k in range(num_samples)
    ]


def folder_name(prompt: str) -> str:
    """The prompt with underscores for blanks, without slashes, cut at 120 characters (and at what a file name
    can hold)."""
    name = "_".join(prompt.split()).replace("/", "").replace("\0", "")[:_NAME_CHARACTERS]
    return name.encode("utf-8")[:_NAME_BYTES].decode("utf-8", errors="ignore")


def refuse_existing(jobs: Sequence[SampleJob], *, latents_only: bool = False) -> None:
    """Raises: DataError that lists outputs of these jobs which are there already."""
    paths = [job.latent_path if latents_only else job.video_path for job in jobs]
    existing = [path for path in paths if path.exists()]
    if existing:
        shown = ", ".join(map(str, existing[:3])) + (f" and {len(existing) - 3} more" if len(existing) > 3 else "")
        raise DataError(
            f"{len(existing)} of {len(paths)} outputs exist already: {shown}; "
            "set args.overwrite=true to replace them, or another args.output_dir"
        )


def check_output_dir(output_dir: str | Path) -> None:
    """Raises: DataError when files can't be made below this folder; nothing is made here."""
    place = Path(output_dir).expanduser().absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise DataError(f"args.output_dir {output_dir}: {place} is a file, a folder is needed")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f"args.output_dir {output_dir}: no permission to write in {place}")
