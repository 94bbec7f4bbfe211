"""Data sets on the hub, from a copy in Hugging Face's own cache: no network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from data.sources.listing_files import read, refused, rows


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the revision that the cache holds of someone/clips."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "datasets--someone--clips", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    folder = place / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def test_a_data_set_is_read_as_its_folder(hub: Path) -> None:
    (hub / "metadata.csv").write_text("file_name,text\na.mp4,a cat\n")
    listing = read("someone/clips", layout="hub")
    assert rows(listing, hub) == [("a.mp4", "a cat")]
    assert (listing.sources[0].path, listing.sources[0].layout) == ("someone/clips", "videofolder")


def test_what_is_refused(hub: Path, tmp_path: Path) -> None:
    refused("someone/nothing", r"someone/nothing: can't be downloaded from Hugging Face: ", layout="hub")
    refused("a/b/c", r"a/b/c: is no name of a data set on Hugging Face; expected owner/name", layout="hub")
    refused("someone/clips", r"does not exist; .*is written as \{path: someone/clips, layout: hub\}")
