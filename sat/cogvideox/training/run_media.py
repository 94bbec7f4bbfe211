"""What TensorBoard and Weights & Biases get beside figures: the configuration, and previews that move."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import av
import yaml
from PIL import Image

from cogvideox.errors import DataError
from cogvideox.log import get_logger

_log = get_logger(__name__)
_LONGER_SIDE = 360  # pixels of an animation: TensorBoard keeps every one in its file


def board_previews(board: Any, step: int, folder: Path) -> None:
    """Each video and picture of a folder, as an animation below `Previews/`. TensorBoard shows GIFs among its images.

    board: torch's SummaryWriter. Raises: OSError, DataError for a file that can't be read.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    for file in _previews(folder):
        data, (width, height) = animation(file)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        board.file_writer.add_summary(Summary(value=[Summary.Value(tag=f"Previews/{file.stem}", image=image)]), step)


def wandb_previews(run: Any, step: int, folder: Path) -> None:
    """The same for Weights & Biases, which plays the files themselves."""
    import wandb

    media = {
        f"Previews/{file.stem}": wandb.Image(str(file))
        if file.suffix == ".png"
        else wandb.Video(str(file), format="mp4")
        for file in _previews(folder)
    }
    run.log(media, step=step)


def board_configuration(board: Any, text: str) -> None:
    """YAML as TensorBoard's text, which is Markdown: four blanks make a line of code."""
    board.add_text("configuration", "\n".join(f"    {line}" for line in text.rstrip("\n").split("\n")))


def start_wandb(project: str, folder: Path, configuration: str) -> Any:
    """A run of Weights & Biases with the configuration; without login or network it is recorded in the run folder."""
    import wandb

    def init(mode: Any) -> Any:
        config = yaml.safe_load(configuration)
        return wandb.init(project=project, name=folder.name, dir=str(folder), config=config, mode=mode)

    if mode := os.environ.get("WANDB_MODE"):
        return init(mode)
    try:
        if wandb.login(prompt=False, verify=False):
            return init("online")
        reason = "not logged in (`wandb login` does it, once)"
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
    run = init("offline")
    _log.warning(
        "Weights & Biases: %s; this run is recorded offline, and `wandb sync %s` uploads it later",
        reason, folder / "wandb" / "offline-run-*",
    )  # fmt: skip
    return run


def animation(file: Path) -> tuple[bytes, tuple[int, int]]:
    """A video as GIF, or a picture: the bytes, and (width, height). Raises: OSError, DataError."""
    if file.suffix == ".png":
        with Image.open(file) as picture:
            return file.read_bytes(), picture.size
    try:
        with av.open(str(file)) as container:
            rate = container.streams.video[0].average_rate
            frames = [_smaller(frame.to_image()) for frame in container.decode(video=0)]
    except av.error.FFmpegError as error:  # as where the disk was full
        raise DataError(f"{file}: can't be read as a video: {error.strerror}") from error
    data = io.BytesIO()
    duration = round(1000 / float(rate or 8))
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return data.getvalue(), frames[0].size


def _smaller(picture: Image.Image) -> Image.Image:
    picture.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    return picture


def _previews(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.mp4"), *folder.glob("*.png")])
