"""Tar shards, written by Python's tarfile and read in place."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cogvideox.data.decode import PyAVReader
from cogvideox.data.media import Media
from cogvideox.data.timing import ClipSpec, frame_indices
from cogvideox.errors import DataError
from data.clip_files import render
from data.sources.listing_files import problems, read, refused


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_samples_are_read_in_place(tmp_path: Path) -> None:
    clip = render(tmp_path / "x.mp4")
    content, words = clip.read_bytes(), json.dumps({"caption": "a dog"}).encode()
    long_name = "d/" * 60 + "a.mp4"
    write(
        tmp_path / "s.tar", {"._a.txt": b"", long_name: content, long_name[:-3] + "txt": "a cat, 猫\nsecond".encode()}
    )
    write(tmp_path / "t.tar", {"b.json": words, "b.mp4": content, "b.jpg": b"first", "c.cls": b"3"}, "w")
    listing = read(f"{tmp_path}/{{s,t}}.tar")
    assert [sample.captions for sample in listing.samples] == [("a cat, 猫",), ("a dog",)] and listing.num_videos == 2
    for sample in listing.samples:
        found = PyAVReader().read(sample.media, lambda times: frame_indices(times, ClipSpec((48, 96), 8, 9)))
        whole = PyAVReader().read(Media(str(clip)), lambda times: frame_indices(times, ClipSpec((48, 96), 8, 9)))
        assert np.array_equal(found.frames, whole.frames)
    assert listing.samples[0].label == f"{tmp_path}/s.tar:{long_name}"
    image = listing.samples[1].image
    assert image is not None and image.open_bytes().read() == b"first"
    assert read(tmp_path / "s.tar", captions="random").samples[0].captions == ("a cat, 猫", "second")


def test_patterns(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"s-{number:03d}.tar", {"a.mp4": b"x", "a.txt": b"cap"})
    for pattern, count in (
        ("s-{000..011}.tar", 12),
        ("s-{003..004}.tar", 2),
        ("s-*.tar", 12),
        ("s-00[12].tar", 2),
        ("", 12),
    ):
        listing = read(f"{tmp_path}/{pattern}")
        assert len(listing.samples) == count and listing.sources[0].layout == "webdataset"
        assert len(set(listing.samples.sample_ids().tolist())) == count
    refused(f"{tmp_path}/s-{{010..012}}.tar", r"s-012\.tar: does not exist \(from .*\{010\.\.012\}")
    refused(f"{tmp_path}/q-*.tar", r"no tar file has such a name")
    refused(f"{tmp_path}/q-{{0..99999999}}.tar", r"is no range of at most 1,000,000 files")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_shards(tmp_path: Path, mode: str) -> None:
    write(tmp_path / "s.tar", {"a.mp4": b"x" * 5000}, mode)
    refused(tmp_path / "s.tar", r"s\.tar: is compressed with .*; unpack it once, for instance: \w+ -d s\.tar")


def test_broken_shards(tmp_path: Path) -> None:
    whole = write(tmp_path / "s.tar", {"a.txt": b"cap", "a.mp4": b"x" * 20_000}).read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:9000])
    refused(tmp_path / "s.tar", r"s\.tar: is cut short at a\.mp4: it has 9000 bytes of at least 2\d+; copy it again")
    (tmp_path / "s.tar").write_bytes(whole[:700])
    refused(tmp_path / "s.tar", r"s\.tar: (is cut short|can't be read as a tar file)")
    (tmp_path / "s.tar").write_bytes(b"no tar at all" * 100)
    refused(tmp_path / "s.tar", r"s\.tar: can't be read as a tar file")
    (tmp_path / "s.tar").write_bytes(b"")
    refused(tmp_path / "s.tar", r"s\.tar: is empty")
    write(tmp_path / "s.tar", {"a.mp4": b"x", "a.json": b"{"})
    refused(tmp_path / "s.tar", r"s\.tar:a\.json: is no valid JSON")


def test_a_shard_that_ends_between_two_members(tmp_path: Path) -> None:
    members = {f"{number}.{kind}": b"cap" for number in range(3) for kind in ("mp4", "txt")}
    shard = write(tmp_path / "it's.tar", members)
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        starts = [member.offset for member in tar][1:]
    assert len(starts) == 5
    for start, before in zip(starts, members, strict=False):
        shard.write_bytes(whole[:start])  # what a download that ended early leaves
        refused(shard, rf"it's\.tar: is cut short after {before}: the empty blocks .* are missing; copy it again")
        shard.write_bytes(whole[: start + 100])
        refused(shard, rf"it's\.tar: is cut short after {before}: the next member is incomplete; copy it again")
        shard.write_bytes(whole[:start] + b"x" * 2000)
        refused(shard, rf"it's\.tar: is damaged after {before}: what follows is no member")
    shard.write_bytes(whole[: starts[-1] + 1024])  # all members, as some tools write them
    with pytest.raises(DataError) as found:
        read(shard)
    subprocess.run(["bash", "-c", str(found.value).partition("this adds them: ")[2]], check=True)
    assert len(read(shard).samples) == 3
    shard.write_bytes(whole[: starts[-1] + 1024 + 512])  # one empty block is enough
    assert len(read(shard).samples) == 3


def test_samples_that_can_not_be_used(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", {"a.1.mp4": b"x", "a.2.mp4": b"x", "b.mp4": b"x", "c.png": b"x", "c.txt": b"x"})
    listing = read(tmp_path / "s.tar")
    assert not len(listing.samples) and listing.num_videos == 3
    assert [kind for kind, _ in problems(listing)] == ["incomplete row", "missing caption", "image among clips"]
