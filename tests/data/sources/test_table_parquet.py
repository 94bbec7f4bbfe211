"""Parquet files of paths and captions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from data.sources.listing_files import read, refused, rows


def test_a_file_and_a_folder_of_files(tmp_path: Path) -> None:
    table = pa.table(
        {"file_name": ["a.mp4", "b.mp4"], "captions": [["a cat", "a tom"], ["a dog"]], "score": [1.0, 2.0]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    expected = [("a.mp4", "a cat"), ("b.mp4", "a dog")]
    assert rows(read(tmp_path / "x.parquet"), tmp_path) == rows(read(tmp_path), tmp_path) == expected
    assert read(tmp_path / "x.parquet", captions="random").samples[0].captions == ("a cat", "a tom")


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    refused(tmp_path / "x.parquet", r"x\.parquet: can't be read as Parquet: ")
    pyarrow.parquet.write_table(pa.table({"video": [b"...."], "text": ["a"]}), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", r"column 'video' holds the videos themselves; .*save_to_disk\('unpacked'\)")
    pyarrow.parquet.write_table(pa.table({"video": ["a.mp4"], "text": [3]}), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", r"column 'text' holds numbers")
    pyarrow.parquet.write_table(pa.table({"video": ["a.mp4"], "words": ["x"]}), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", r"the columns are video, words")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "x.parquet", r"can't be read as Parquet")
