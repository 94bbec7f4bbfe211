"""Which configuration was in force when a checkpoint was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogvideox.weights.run_config import run_config_name, trained_config

STARTS = (0, 500, 1000)
STATES = "mp_rank_00_model_states.pt"


def of(folder: Path) -> str | None:
    file = trained_config(folder / STATES)
    return None if file is None else file.name


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for start in STARTS:
        (tmp_path / "run" / run_config_name(start)).touch()
    return tmp_path / "run"


def test_a_resumed_run_has_the_settings_of_each_part(run: Path) -> None:
    assert of(run / "0") == of(run / "500") == of(run / "500-ema") == "training_config.yaml"
    assert of(run / "501") == of(run / "1000") == of(run / "global_step700") == "training_config-resumed-at-500.yaml"
    assert of(run / "1500-ema") == of(run / "merged") == "training_config-resumed-at-1000.yaml"


def test_outside_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "500").mkdir()
    (tmp_path / "training_config-mine.yaml").touch()
    assert of(tmp_path / "500") is None


def test_beside_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "training_config.yaml").touch()
    assert of(tmp_path) == "training_config.yaml"


def test_links_lead_both_ways(run: Path, tmp_path: Path) -> None:
    """An iteration that lies on another disk, and a link to one from outside."""
    (tmp_path / "large").mkdir()
    (run / "700").symlink_to(tmp_path / "large")
    assert of(run / "700") == "training_config-resumed-at-500.yaml"
    (run / "400").mkdir()
    (tmp_path / "alias").symlink_to(run / "400")
    assert of(tmp_path / "alias") == "training_config.yaml"
