"""What users get when something they gave is wrong, and the one place where it becomes an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

EXIT_USER_ERROR = 2


class UserError(ValueError):
    """A mistake in what the user gave. The text says what is wrong, where, and what would be valid."""


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


def _rank_prefix() -> str:
    """Empty on a lone process and on the first of several, whose message is the one to read."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"[rank {rank}] "


def run_cli(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a script's main and turn a user's mistake into one line on stderr and status 2.

    With `--debug` among the arguments the traceback is shown as well. Other exceptions are bugs and propagate.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        main(arguments)
    except UserError as error:
        if "--debug" in arguments:
            raise
        print(f"{_rank_prefix()}error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
