"""What the tests of layouts have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cogvideox.data.sources.read import Listing, read_sources
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.errors import DataError


def read(path: Path | str, *, missing_captions: str = "error", captions: str = "first", **entry: Any) -> Listing:
    """One entry, read by itself."""
    return read_sources([SourceSpec(str(path), **entry)], missing_captions, captions=captions)


def rows(listing: Listing, folder: Path) -> list[tuple[str, str]]:
    """(path relative to the folder, first caption) of each sample."""
    return [(os.path.relpath(sample.media.path, folder), sample.captions[0]) for sample in listing.samples]


def refused(path: Path | str, match: str, **entry: Any) -> None:
    """Reading says this, in one line."""
    with pytest.raises(DataError, match=match) as caught:
        read(path, **entry)
    assert "\n" not in str(caught.value)


def problems(listing: Listing) -> list[tuple[str, str]]:
    """(kind, reason) of each."""
    return [(problem.kind, problem.reason) for problem in listing.problems]
