"""Under which licence the released weights stand, and the licence file that lies beside them.

2B is Apache-2.0. 5B and 1.5 have the CogVideoX License: free for research; commercial use needs a registration, and
its text goes with every copy. Weights that are made from these, by training or conversion, stay under their licence.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cogvideox import commands
from cogvideox.released import Family

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "MODEL_LICENSE")
_LEVELS = 3  # <weights>/transformer/1/file.pt: its licence lies in <weights>


@dataclass(frozen=True)
class Licence:
    """One licence, in the words of a model card's header, and what it asks for."""

    identifier: str  # of the Hugging Face hub
    name: str
    link: str
    asks: str


_APACHE = Licence(
    "apache-2.0",
    "Apache-2.0",
    "https://www.apache.org/licenses/LICENSE-2.0",
    "Keep the licence text with every copy, and say what was changed.",
)
_COGVIDEOX = Licence(
    "other",
    "CogVideoX License",
    "https://huggingface.co/THUDM/CogVideoX-5b/blob/main/LICENSE",
    "Research use is free. Commercial use needs a registration with the licensor first. The licence text and the "
    "copyright statement go with every copy.",
)


def licence_of(family: Family) -> Licence:
    """The licence of a published model."""
    return _APACHE if family.licence == _APACHE.name else _COGVIDEOX


def find_licence_file(weights: Iterable[Path]) -> Path | None:
    """The licence that lies beside weight files or in one of the folders around them; this program's own is not meant.

    weights: the files that a result is made of; the last one that has a licence wins, which is the base's.
    """
    found = None
    for file in weights:
        for folder in list(file.absolute().parents)[:_LEVELS]:
            if folder == commands.ROOT or (folder / ".git").exists():
                break  # a checkout of some program, with that program's licence
            if (there := licence_in(folder)) is not None:
                found = there
                break
    return found


def licence_in(folder: Path) -> Path | None:
    """The licence file of a folder; None when it has none."""
    return next((folder / name for name in LICENCE_FILES if (folder / name).is_file()), None)


def copy_licence(source: Path | None, folder: Path) -> str | None:
    """Copy a licence file into a folder that has none; return its name there, None without a source."""
    if source is None:
        return None
    if not (folder / source.name).exists():
        shutil.copyfile(source, folder / source.name)
    return source.name
