"""Hashing beside the work ends with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from cogvideox.conversion import file_records
from cogvideox.conversion.file_records import described_meanwhile
from cogvideox.conversion.manifest import Manifest, read_manifest
from cogvideox.errors import CheckpointError


def test_failure_does_not_wait_for_files_that_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def slow(file: Path, with_sha256: bool) -> dict[str, Any]:
        hashed.append(file)
        time.sleep(0.2)
        return {"path": str(file)}

    monkeypatch.setattr(file_records, "describe_input", slow)
    files = [tmp_path / str(number) for number in range(10)]
    with pytest.raises(CheckpointError, match="disk full"), described_meanwhile(files, False):
        raise CheckpointError("disk full")
    assert len(hashed) <= 1
    with described_meanwhile(files[:3], False, threads=3) as records:
        pass
    assert [each["path"] for each in records()] == [str(file) for file in files[:3]]


def test_parts_are_replaced(tmp_path: Path) -> None:
    """And a manifest is what it was after reading."""
    manifest = Manifest({"source": "x"}).replacing("a", [{"path": "1"}], [{"path": "2"}])
    manifest = manifest.replacing("b", [], [{"path": "3"}]).replacing("a", [], [{"path": "4"}])
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest.part("a") == Manifest({"source": "x"}, (), ({"path": "4"},))
    assert manifest.part("b").outputs == ({"path": "3"},)


@pytest.mark.parametrize("content", ["{}", '{"inputs": [], "outputs": {}}', '{"inputs": [1], "outputs": []}'])
def test_another_file_of_that_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "conversion.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"conversion.json is no manifest of a conversion"):
        read_manifest(tmp_path)
