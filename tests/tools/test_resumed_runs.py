"""The tools take the settings that were in force when a checkpoint was written, also those of a resumed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from cogvideox.conversion.lora.source import run_yaml
from cogvideox.weights.run_config import run_config_name
from cogvideox.weights.sat_folder import find_states_file
from convert_weight_sat2hf import main
from tiny_checkpoints import Checkpoints


@pytest.fixture
def run(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """Checkpoints of the iterations 500 and 1000, with another noise schedule from 500 on."""
    folder = tmp_path / "run"
    for iteration in (500, 1000):
        states = find_states_file(checkpoints.family.transformer)
        (folder / str(iteration)).mkdir(parents=True)
        shutil.copy(states, folder / str(iteration) / states.name)
        tree = {"model": tiny.model_section(checkpoints.family, lora={"r": 4, "lora_alpha": iteration / 100})}
        tree["model"]["schedule_config"]["params"]["shift_scale"] = iteration / 500
        tiny.write_yaml(folder / run_config_name(iteration - 500), tree)
    (folder / "latest").write_text("1000")
    return folder


@pytest.mark.parametrize(("iteration", "shift_scale"), [("500", 1.0), ("1000", 2.0)])
def test_export_takes_the_settings_of_the_checkpoint(
    run: Path, tmp_path: Path, iteration: str, shift_scale: float
) -> None:
    output = tmp_path / "out"
    main(["--checkpoint", str(run), "--iteration", iteration, "--output_path", str(output)])
    scheduler = json.loads((output / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["snr_shift_scale"] == shift_scale


def test_lora_tools_take_the_alpha_of_the_checkpoint(run: Path) -> None:
    for iteration, alpha in (("500", 5.0), ("1000", 10.0)):
        yaml = run_yaml(find_states_file(run, iteration))
        assert yaml is not None and yaml.lora_alpha == alpha
