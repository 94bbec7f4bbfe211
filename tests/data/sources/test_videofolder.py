"""Hugging Face's videofolder, which `datasets` itself reads the same way."""

from __future__ import annotations

import json
from pathlib import Path

from data.sources.listing_files import read, refused, rows


def test_metadata_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\nsub/a.mp4,a cat\nb.mp4,a dog\n")
    expected = [("sub/a.mp4", "a cat"), ("b.mp4", "a dog")]
    listing = read(tmp_path)
    assert rows(listing, tmp_path) == expected and listing.sources[0].layout == "videofolder"
    (tmp_path / "metadata.csv").unlink()
    lines = [{"file_name": name, "text": text} for name, text in expected]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert rows(read(tmp_path), tmp_path) == expected
    assert [sample.sample_id for sample in read(tmp_path).samples] == [sample.sample_id for sample in listing.samples]


def test_without_metadata(tmp_path: Path) -> None:
    refused(tmp_path, r"has no metadata\.csv, metadata\.jsonl, metadata\.parquet", layout="videofolder")
    refused(tmp_path / "nowhere", r"is no folder; the layout videofolder is that of a folder", layout="videofolder")
