"""What command lines of tools have in common."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn

import torch

from cogvideox.errors import ConfigError
from cogvideox.user_files import is_possible, shown


class Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of leaving the process, and keeps the description's lines."""

    def __init__(self, description: str, epilog: str | None = None) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=kind, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def error(self, message: str) -> NoReturn:
        """Raises: ConfigError, always."""
        raise ConfigError(f"{message}; see --help")


def add_output(parser: argparse._ActionsContainer, default: str = "as stored") -> None:
    """--output_path, and the types to store."""
    parser.add_argument("--output_path", type=possible_path, required=True, metavar="DIR", help="new or empty folder")
    group = parser.add_mutually_exclusive_group()
    for name in ("float16", "bfloat16", "float32"):
        short = name.replace("bfloat", "bf").replace("float", "fp")
        group.add_argument(
            f"--{short}",
            dest="dtype",
            action="store_const",
            const=getattr(torch, name),
            help=f"store {name}; default: {default}",
        )


def possible_path(text: str) -> Path:
    """A path that a file system can hold, for argparse."""
    if not is_possible(text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no name that a file or folder can have")
    return Path(text)


def positive(text: str) -> float:
    """A number above zero, for argparse."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
