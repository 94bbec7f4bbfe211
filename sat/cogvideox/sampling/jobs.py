"""One job per video: what it starts from, its seed and its place on the disk. No torch here: `--check` plans too."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cogvideox.config.schema import Config, SampleArgs
from cogvideox.errors import DataError
from cogvideox.sampling.image_size import check_images, size_rule
from cogvideox.sampling.prompts import Prompt, parse_prompts, read_prompts
from cogvideox.weights.runs import find_weights

VIDEO_NAME = "000000.mp4"
PICTURE_NAME = "000000.png"
LATENT_NAME = "latent.safetensors"
TIME_MARK = "{time}"  # in args.output_dir: each run of sampling has a folder of its own
_NAME_CHARACTERS = 120
_NAME_BYTES = 240  # file systems allow 255 bytes per name
_NAME_MARKS = "_-.,+@"  # beside letters and digits: harmless in shells, and to every file system


@dataclass(frozen=True)
class SampleJob:
    """One video to make.

    prompt_index: place of the prompt in its list; sample_index: 0.. for the videos of one prompt;
    seed: with prompt_index it decides the noise; folder: where the files go; image: the file that an image-to-video
    model starts from; size: (height, width) in pixels where the run does not have one for all.
    """

    prompt: str
    prompt_index: int
    sample_index: int
    seed: int
    folder: Path
    image: Path | None = None
    size: tuple[int, int] | None = None

    @property
    def video_path(self) -> Path:
        return self.folder / VIDEO_NAME

    @property
    def picture_path(self) -> Path:
        """Instead of the video, when it has one frame."""
        return self.folder / PICTURE_NAME

    @property
    def latent_path(self) -> Path:
        return self.folder / LATENT_NAME


def read_jobs(config: Config) -> list[SampleJob]:
    """All jobs of a run. Every image is read once, so that none fails after the model has been loaded.

    Raises: DataError.
    """
    args, image_to_video = config.sample_args, config.model.noised_image_input
    prompts = read_prompts(args, image_to_video=image_to_video)
    sizes = None
    if image_to_video:
        sizes = check_images(prompts, None if args.sampling_image_size else size_rule(config.model))
    return plan_jobs(prompts, args.num_samples, args.seed, args.output_dir, sizes)


def check_jobs(config: Config) -> None:
    """What `--check` can say about weights and prompts: it does not wait for a terminal. Raises: CheckpointError,
    DataError.
    """
    find_weights(config.sample_args.load or "", config.sample_args.save)
    if config.sample_args.prompts or config.sample_args.input_type == "txt":
        read_jobs(config)


def read_previews(config: Config) -> list[Prompt]:
    """The prompts of `args.eval_prompts` of a training run; for an image-to-video model each is `prompt@@image`. Every
    image is read once, so that none fails in the middle of a run. Raises: DataError."""
    given, image_to_video = config.train_args.eval_prompts, config.model.noised_image_input
    if not given:
        return []
    prompts = parse_prompts(given, "args.eval_prompts", image_to_video=image_to_video)
    if image_to_video:
        check_images(prompts)
    return prompts


def plan_jobs(
    prompts: Sequence[Prompt],
    num_samples: int,
    seed: int,
    output_dir: str | Path,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> list[SampleJob]:
    """`num_samples` videos for each prompt, with seeds seed, seed + 1, ...

    Folders are `<output_dir>/<n>_<prompt>/<k>`, n the place of the prompt and k that of the sample, both from
    0. sizes: of each prompt's videos, where the run does not have one for all. output_dir: `{time}` in it is the time
    of this call.
    """
    root = Path(str(output_dir).replace(TIME_MARK, f"{datetime.now():%m-%d-%H-%M-%S}")).expanduser()
    return [
        SampleJob(
            prompt.text,
            n,
            k,
            seed + k,
            root / f"{n}_{folder_name(prompt.text)}" / str(k),
            prompt.image,
            None if sizes is None else sizes[n],
        )
        for n, prompt in enumerate(prompts)
        for k in range(num_samples)
    ]


def folder_name(prompt: str) -> str:
    """The prompt with underscores for blanks, cut at 120 characters (and at what a file name can hold).

    Only letters, digits, accents and `_-.,+@` stay, so that the name needs no quotes in a shell and is one on Windows.
    """
    words = ["".join(filter(_stays, word)) for word in unicodedata.normalize("NFC", prompt).split()]
    name = "_".join(word for word in words if word)[:_NAME_CHARACTERS]
    return name.encode("utf-8")[:_NAME_BYTES].decode("utf-8", errors="ignore").rstrip(".")


def _stays(character: str) -> bool:
    return character.isalnum() or character in _NAME_MARKS or unicodedata.category(character).startswith("M")


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raises: DataError that lists those of the outputs which are there already."""
    existing = [path for path in paths if path.exists()]
    if existing:
        shown = ", ".join(map(str, existing[:3])) + (f" and {len(existing) - 3} more" if len(existing) > 3 else "")
        raise DataError(
            f"{len(existing)} of {len(paths)} outputs exist already: {shown}; "
            "set args.overwrite=true to replace them, or another args.output_dir"
        )


def main_output(job: SampleJob, args: SampleArgs) -> Path:
    """The file that shows whether a job has been done."""
    if args.only_save_latents:
        return job.latent_path
    return job.picture_path if args.sampling_num_frames == 1 else job.video_path


def check_output_dir(output_dir: str | Path) -> None:
    """Raises: DataError when files can't be made below this folder; nothing is made here."""
    place = Path(output_dir).expanduser().absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise DataError(f"args.output_dir {output_dir}: {place} is a file, a folder is needed")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f"args.output_dir {output_dir}: no permission to write in {place}")
