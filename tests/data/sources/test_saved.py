"""Data sets saved by Hugging Face's `datasets`, which writes them here."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
from data.sources.listing_files import read, refused


def test_videos_inside_arrow_files_are_read_in_place(tmp_path: Path) -> None:
    contents = [bytes([number]) * (1000 + number) for number in range(7)]
    videos = [{"bytes": content, "path": f"{number}.mp4"} for number, content in enumerate(contents)]
    features = datasets.Features(
        {
            "video": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "caption": datasets.Value("string"),
        }
    )
    table = datasets.Dataset.from_dict({"video": videos, "caption": [f"clip {n}" for n in range(7)]}, features)
    table.select([5, 3, 1, 0, 6]).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    listing = read(tmp_path / "saved")
    assert listing.sources[0].layout == "datasets"
    assert [sample.captions[0] for sample in listing.samples] == [f"clip {n}" for n in (5, 3, 1, 0, 6)]
    for sample, number in zip(listing.samples, (5, 3, 1, 0, 6), strict=True):
        assert sample.media.open_bytes().read() == contents[number] and sample.media.suffix == ".mp4"


def test_paths_and_nothing(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"path": ["a.mp4", None, "b.mp4"], "text": ["one", "two", "three"]})
    table.save_to_disk(str(tmp_path / "saved"))
    listing = read(tmp_path / "saved", root=str(tmp_path))
    assert [sample.media.path for sample in listing.samples] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4"]
    assert [problem.reason for problem in listing.problems] == ["its video is empty"]


def test_what_is_refused(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"path": ["a.mp4"], "text": ["one"]})
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "splits"))
    refused(tmp_path / "splits", r"holds several splits; name one: .*splits/train")
    assert len(read(tmp_path / "splits" / "train").samples) == 1
    (file,) = (tmp_path / "splits" / "train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:60])
    refused(tmp_path / "splits" / "train", r"\.arrow: can't be read as Arrow")
    file.unlink()
    refused(tmp_path / "splits" / "train", r"\.arrow: does not exist")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("path", pa.int64())])) as writer:
        writer.write_table(pa.table({"path": pa.array([1])}))
    refused(tmp_path / "splits" / "train", r"no column is known to hold the captions")
