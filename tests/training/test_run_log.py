"""Figures are written as long as there is room for them, and a run goes on without."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path

import pytest
from cogvideox.training.metrics import Reading
from cogvideox.training.run_log import RunLog


def write(folder: Path, steps: int) -> None:
    with RunLog(folder, 1, steps) as log:
        for step in range(1, steps + 1):
            log.training(Reading(step, 1.0, 0.5, 0.1, 100.0, 1.0), 1e-3)
            log.validation(step, 2.0)


def test_lines_for_programs(tmp_path: Path) -> None:
    write(tmp_path, 2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2]
    assert lines[0]["train_loss"] == 1.0 and lines[1] == {"step": 1, "valid_loss": 2.0}


def test_a_full_disk_is_warned_of_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    # Those of earlier tests may write into a file that is longer than the limit already.
    monkeypatch.setattr(logging.getLogger("cogvideox"), "handlers", [])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        write(tmp_path, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    warnings = sorted(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert warnings == [
        f"{what} can't be written (File too large): the run goes on without it"
        for what in ("TensorBoard's file", "metrics.jsonl")
    ]
    assert "Traceback" not in capfd.readouterr().err


def test_a_place_that_takes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").touch()
    (tmp_path / "metrics.jsonl").mkdir()
    write(tmp_path, 2)
