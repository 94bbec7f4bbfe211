"""A run that was stopped and resumed is the run that was never stopped."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from cogvideox.errors import CheckpointError

BF16 = "deepspeed.bf16.enabled=true"
# Everything that could make a difference: a curve, dropout, accumulation, an epoch that ends in the middle.
COMMON = (
    "args.train_iters=6",
    "args.save_interval=3",
    "args.lr_schedule=cosine",
    "model.network_config.params.modules.lora_config.params.lora_dropout=0.2",
    "deepspeed.gradient_accumulation_steps=2",
)


def losses(folder: str | Path) -> list[float]:
    return [line["train_loss"] for line in tiny.read_lines(Path(folder)) if "train_loss" in line]


def cut_off(folder: Path, copy: Path, step: int) -> Path:
    """The run folder as a crash after the checkpoint of `step` leaves it."""
    shutil.copytree(folder, copy)
    for each in copy.iterdir():
        if each.name.isdigit() and int(each.name) > step:
            shutil.rmtree(each)
    (copy / "latest").write_text(str(step))
    (copy / "metrics.jsonl").unlink()
    return copy


@pytest.mark.parametrize("extra", [(), (BF16,), ("deepspeed.zero_optimization.stage=2", BF16)])
def test_resumed_equals_uninterrupted(train, tmp_path, extra):
    whole = Path(train(*COMMON, *extra)["run_folder"])
    part = cut_off(whole, tmp_path / "stopped" / whole.name, 3)
    summary = train(*COMMON, *extra, "args.resume=latest", save="stopped")
    assert summary["run_folder"] == str(part)
    assert losses(part) == losses(whole)[3:]
    straight, resumed = tiny.read_states(whole), tiny.read_states(part)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_resume_by_path_and_again_over_later_checkpoints(train):
    whole = Path(train(*COMMON)["run_folder"])
    before = tiny.read_states(whole)
    train(*COMMON, f"args.resume={whole / '3'}")
    assert all(torch.equal(before[name], each) for name, each in tiny.read_states(whole).items())
    assert (whole / "training_config-resumed-at-3.yaml").is_file()


def test_what_differs_after_a_resume_is_said(train, family, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    run = train("args.train_iters=2")
    fewer = tmp_path / "fewer"
    shutil.copytree(family.clips, fewer, ignore=shutil.ignore_patterns("07_*"))
    with caplog.at_level("WARNING", logger="cogvideox"):
        summary = train("args.train_iters=2", f"args.resume={run['run_folder']}", f"args.train_data=[{fewer}]")
    assert "the clips are not those of the run that was saved" in caplog.text
    assert "nothing left to do: 2 of 2 iterations are done" in caplog.text and summary["checkpoint"] is None
    assert f"training_config.yaml: args.train_data ['{family.clips}'] -> ['{fewer}']" in caplog.text
    caplog.clear()
    train("args.train_iters=2", f"args.resume={run['run_folder']}", f"args.train_data=[{fewer}]")
    assert "other settings" not in caplog.text


def test_missing_and_unfit_resumes_are_refused(train, family, tmp_path):
    with pytest.raises(CheckpointError, match=r"args.resume: latest, but .* holds no run of 'tiny'"):
        train("args.resume=latest")
    with pytest.raises(CheckpointError, match=r"args.resume: no checkpoint at"):
        train(f"args.resume={tmp_path / 'nowhere'}")
    with pytest.raises(CheckpointError, match="holds weights but no training_state"):
        train(f"args.resume={family.transformer}")
    assert not (tmp_path / "runs").exists()
    run = train("args.train_iters=1")
    with pytest.raises(CheckpointError, match="saved by AdamW, this run uses DeepSpeedZeroOptimizer"):
        train(f"args.resume={run['run_folder']}", "deepspeed.zero_optimization.stage=1")
