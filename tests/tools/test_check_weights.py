"""tools/check_weights.py: every file gets a verdict, and damage an exit status."""

from __future__ import annotations

from pathlib import Path

import check_weights
import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.sat_folder import STATES_FILE, write_checkpoint
from safetensors.torch import save_file

STATE = {"model.diffusion_model.a": torch.arange(300.0)}


def verdicts(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The first word of each line, by the name of the file that it is about."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {Path(line[1].rstrip(":")).name: line[0] for line in lines if line[0] != "SHA-256"}


def test_files_of_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "run", 5, STATE, {})
    torch.save(STATE, tmp_path / "foreign.pt")
    save_file(STATE, tmp_path / "foreign.safetensors")
    (tmp_path / "notes.txt").write_text("no weights")
    check_weights.main([str(tmp_path)])
    assert verdicts(capsys) == {STATES_FILE: "ok", "foreign.pt": "ok", "foreign.safetensors": "unknown"}
    check_weights.main([str(tmp_path / "foreign.safetensors"), "--sha256"])
    assert "SHA-256 " in capsys.readouterr().out


def test_damage_and_nan_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "run", 5, STATE, {})
    file = tmp_path / "run" / "5" / STATES_FILE
    file.write_bytes(file.read_bytes() + b"\0")
    save_file({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.safetensors")
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04")
    torch.save(STATE, tmp_path / "good.pt")
    with pytest.raises(CheckpointError, match="3 of 4 files are damaged, see above"):
        check_weights.main([str(tmp_path)])
    expected = {STATES_FILE: "DAMAGED", "nan.safetensors": "DAMAGED", "half.pt": "DAMAGED", "good.pt": "ok"}
    assert verdicts(capsys) == expected


def test_a_listed_file_that_is_gone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", 5, STATE, {})
    (tmp_path / "run" / "5" / STATES_FILE).unlink()
    with pytest.raises(CheckpointError, match="1 of 1 files are damaged"):
        check_weights.main([str(tmp_path / "run")])


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_nothing_to_check(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=rf"no weight file at .*{name}; valid are files and folders of \.pt"):
        check_weights.main([str(tmp_path / name)])
