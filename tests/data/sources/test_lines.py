"""A folder with videos.txt and prompts.txt."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.sources.listing_files import read, refused, rows


def put(folder: Path, videos: str, prompts: str) -> None:
    (folder / "videos.txt").write_text(videos, encoding="utf-8")
    (folder / "prompts.txt").write_text(prompts, encoding="utf-8")


def test_line_by_line(tmp_path: Path) -> None:
    put(tmp_path, "videos/a.mp4\nvideos/b.mp4\n\n", "a cat\n猫, \u2028 and more\n")
    listing = read(tmp_path)
    assert listing.sources[0].layout == "lines"
    assert rows(listing, tmp_path) == [("videos/a.mp4", "a cat"), ("videos/b.mp4", "猫, \u2028 and more")]
    (tmp_path / "images.txt").write_text("a.png\nb.png\n")
    assert [sample.image and Path(sample.image.path).name for sample in read(tmp_path).samples] == ["a.png", "b.png"]
    (tmp_path / "other.txt").write_text("one\ntwo\n")
    listing = read(tmp_path, caption_column="other.txt", video_column="videos.txt")
    assert [sample.captions for sample in listing.samples] == [("one",), ("two",)]


@pytest.mark.parametrize(
    ("videos", "prompts", "match"),
    [
        (
            "a.mp4\nb.mp4\nc.mp4\n",
            "one\ntwo\n",
            r"videos\.txt has 3 lines and prompts\.txt has 2; .*look at line 3, the first",
        ),
        (
            "a.mp4\nb.mp4\n",
            "one\n\ntwo\n",
            r"has 2 lines and prompts\.txt has 3; .*look at line 2 of the second, which is empty",
        ),
        ("a.mp4\noops\nb.mp4\n", "one\ntwo\n", r"look at line 2 of the first, which is no video: 'oops'"),
        (
            "red_cat.mp4\nblue_dog.mp4\nold_ship.mp4\n",
            "a cat\nsomething\na dog\na ship\n",
            r"look at line 2, from which on no",
        ),
    ],
)
def test_files_of_different_lengths(tmp_path: Path, videos: str, prompts: str, match: str) -> None:
    put(tmp_path, videos, prompts)
    refused(tmp_path, match)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "videos.txt").write_text("a.mp4\n")
    refused(tmp_path, r"prompts\.txt: No such file")
    refused(tmp_path, r"none\.txt: No such file", layout="lines", caption_column="none.txt")
