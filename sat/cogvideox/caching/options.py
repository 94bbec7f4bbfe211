"""The options of `cache_dataset.py` beside those of training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from cogvideox.errors import ConfigError


@dataclass(frozen=True)
class CacheOptions:
    """What else the command line asks for. verify: how many entries to compute again; import_from, export_to: folders
    of .npz files."""

    verify: int = 0
    stat: bool = False
    prune: bool = False
    yes: bool = False
    import_from: str = ""
    export_to: str = ""


def read_options(argv: Sequence[str]) -> tuple[CacheOptions, list[str]]:
    """The options of `cache_dataset.py`, and the words that training knows too. Raises: ConfigError."""
    parser = argparse.ArgumentParser(prog="cache_dataset.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--verify", default="0", metavar="N")
    parser.add_argument("--stat", action="store_true")
    parser.add_argument("--prune", action="store_true")
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("--import", dest="import_from", default="", metavar="FOLDER")
    parser.add_argument("--export", dest="export_to", default="", metavar="FOLDER")
    found, rest = parser.parse_known_args(list(argv))
    if not found.verify.isdecimal():
        raise ConfigError(f"--verify {found.verify}: give the number of entries to compute again")
    places = found.import_from, found.export_to
    return CacheOptions(int(found.verify), found.stat, found.prune, found.yes, *places), rest
