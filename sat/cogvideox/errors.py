"""What users get when something they gave is wrong, and the one place where it becomes an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from cogvideox import stopping

EXIT_USER_ERROR = 2


class UserError(ValueError):
    """A mistake in what the user gave. The text says what is wrong, where, and what would be valid.

    is_shared: every process of the run raises it, so that one of them is enough to say it.
    """

    is_shared = False


class ConfigError(UserError):
    """A key, value or combination in YAML or on the command line."""


class DataError(UserError):
    """A video, caption, prompt file or folder."""


class CheckpointError(UserError):
    """A weight file, checkpoint folder or the place where one is to be written."""


class ShapeError(UserError):
    """A frame count, size or tensor shape that the model can't take."""


class NotFiniteError(UserError):
    """NaN or infinity where a video should be."""


class OutOfMemoryError(UserError):
    """The device has too little memory for what the configuration asks."""


class LostProcessError(UserError):
    """Another process of the run has ended or stopped, so that this one can't go on."""


def _rank() -> str:
    return os.environ.get("RANK") or "0"


def run_cli(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a script's main and turn a user's mistake into one line on stderr and status 2.

    A signal that asks the program to stop becomes one line and the status of `stopping.Stopped`. With `--debug` among
    the arguments an error's traceback is shown as well. Other exceptions are bugs and propagate.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with stopping.listen():
        try:
            main(arguments)
        except UserError as error:
            if "--debug" in arguments:
                raise
            if _rank() == "0" or not error.is_shared:
                prefix = "" if _rank() == "0" else f"[rank {_rank()}] "
                stopping.say(f"{prefix}error: {error}")
            return EXIT_USER_ERROR
        except stopping.Stopped as stop:
            if _rank() == "0":
                stopping.say(str(stop))
            return stop.status
    return 0
