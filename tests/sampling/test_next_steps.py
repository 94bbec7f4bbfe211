"""The commands that sampling ends with load, and sample something else."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from cogvideox.commands import ROOT
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.sampling.jobs import read_jobs
from cogvideox.sampling.next_steps import after_sampling

FILES = ["configs/demo_lora.yaml", "configs/demo_inference.yaml"]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def commands_after(*overrides: str) -> list[list[str]]:
    config = load_config(FILES, list(overrides), "sample")
    lines = after_sampling(config, read_jobs(config), 1).splitlines()
    return [shlex.split(line) for line in lines if line.startswith("    ")]


def load(words: list[str]) -> Config:
    assert words[:2] == ["bash", "inference.sh"]
    return load_config(words[2:4], words[4:], "sample")


def test_once_more_has_seeds_that_were_not_used() -> None:
    (again,) = commands_after("args.seed=7", "args.num_samples=3", "args.prompts=[it's a ship]")
    args = load(again).sample_args
    assert (args.seed, args.num_samples, args.prompts) == (10, 3, ["it's a ship"])
    assert args.output_dir == "runs/demo_samples/{time}"


def test_once_more_has_a_folder_that_is_not_there() -> None:
    (again,) = commands_after("args.output_dir=/tmp/my videos/")
    assert load(again).sample_args.output_dir == "/tmp/my videos-43"


def test_the_checkpoint_of_a_run_is_exported(tmp_path: Path) -> None:
    run = tmp_path / "run 1"
    (run / "3").mkdir(parents=True)
    (run / "latest").write_text("3")
    (run / "3" / "mp_rank_00_model_states.pt").touch()
    (run / "training_config.yaml").touch()
    again, export = commands_after(f"args.load={run}")
    assert load(again).sample_args.load == str(run)
    assert export[2:] == ["--checkpoint", str(run), "--output_path", str(run / "diffusers"), "--verify"]
