"""Bytes of videos and images in files of their own and inside larger ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cogvideox.data.decode import open_reader
from cogvideox.data.images import read_image
from cogvideox.data.media import Media
from cogvideox.data.timing import ClipSpec, frame_indices
from cogvideox.errors import DataError
from data.clip_files import render
from PIL import Image

SPEC = ClipSpec((48, 96), 8, 9)


def inside(path: Path, within: Path, name: str) -> Media:
    """The file's bytes in the middle of others."""
    content = path.read_bytes()
    within.write_bytes(b"Q" * 777 + content + b"R" * 333)
    return Media(str(within), 777, len(content), name)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("ts", "libx264")],
)
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_a_part_of_a_file_gives_the_frames_of_the_file(tmp_path: Path, suffix: str, codec: str, reader: str) -> None:
    path = render(tmp_path / f"x.{suffix}", codec=codec)
    part = inside(path, tmp_path / "a shard,1:2.tar", f"x.{suffix}")
    whole, found = (
        open_reader(reader).read(media, lambda times: frame_indices(times, SPEC)) for media in (Media(str(path)), part)
    )
    assert np.array_equal(whole.frames, found.frames) and len(found.frames) == 9
    infos = [open_reader(reader).probe(media) for media in (Media(str(path)), part)]
    assert np.array_equal(infos[0].timestamps, infos[1].timestamps) and infos[0].width == infos[1].width


def test_an_image_inside_a_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    part = inside(tmp_path / "x.png", tmp_path / "a.tar", "x.PNG")
    assert part.is_image and np.array_equal(read_image(part), pixels)


def test_parts_that_are_not_there_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"a\.tar:b\.mp4: .*a\.tar is cut short: it has 100 bytes of at least 120"):
        Media(str(file), 20, 100, "b.mp4").check()
    with pytest.raises(DataError, match=r"a\.tar:b\.mp4: is empty \(0 bytes\)"):
        Media(str(file), 20, 0, "b.mp4").check()
    with pytest.raises(DataError, match=r"none\.tar:20: is not a file"):
        Media(str(tmp_path / "none.tar"), 20, 1).check()
    assert Media(str(file)).check() == 100


def test_a_colon_in_a_relative_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(tmp_path / "take:1.mp4")
    monkeypatch.chdir(tmp_path)
    assert open_reader("pyav").probe(Media("take:1.mp4")).num_frames == 60
