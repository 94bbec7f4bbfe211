"""Where pages go: checked before anything is looked at, written in one step, and never over a file of somebody else."""

from __future__ import annotations

import os
from pathlib import Path

from cogvideox.doctor.page import is_ours
from cogvideox.errors import ConfigError
from cogvideox.user_files import is_possible, shown_path
from cogvideox.weights.atomic import write_text_atomically


def check_output(file: Path, flag: str, overwrite: bool = False) -> None:
    """Raises: ConfigError where a page can't be written, or something else has its name; flag: what named the file."""
    if not is_possible(file):
        raise ConfigError(f"{flag}: {shown_path(file)} is no name that a file can have")
    folder = file.absolute().parent
    if file.is_dir():
        raise ConfigError(f"{flag}: {shown_path(file)} is a folder; name a file in it, such as {file / 'report.html'}")
    if file.exists() and not file.is_file():  # renaming a page to it would take a device away
        raise ConfigError(f"{flag}: {shown_path(file)} is a device, a pipe or a socket; name a file")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{flag}: {shown_path(folder)} is a file, and nothing can be written below it")
    if not folder.is_dir():
        raise ConfigError(f"{flag}: there is no folder {shown_path(folder)}; make it: mkdir -p {shown_path(folder)}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag}: no permission to write in {shown_path(folder)}")
    if file.exists() and not overwrite and not is_ours(file):
        raise ConfigError(
            f"{flag}: {shown_path(file)} is there and was not written by this tool; --overwrite replaces it"
        )


def write_output(file: Path, text: str) -> None:
    """Raises: CheckpointError when the disk is full or fails."""
    write_text_atomically(file, text)
