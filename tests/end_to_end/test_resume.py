"""A run that was stopped and resumed is the run that was never stopped."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from cogvideox.errors import CheckpointError
from cogvideox.training.run_folder import RunLock
from cogvideox.training.trainer import Trainer
from cogvideox.weights.runs import record_start

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


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.isdecimal())


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


def test_an_earlier_step_goes_on_in_a_folder_of_its_own(train, tmp_path):
    """keep_last counts what the branch wrote; the run that it comes from stays as it is."""
    whole = Path(train(*COMMON)["run_folder"])
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    settings = ("args.keep_last=1", "args.save_interval=1", f"args.resume={whole / '3'}")
    branch = Path(train(*COMMON, *settings)["run_folder"])
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert branch != whole and checkpoints(branch) == ["6"]
    assert json.loads((branch / "run.json").read_text())["branched_from"] == str(whole / "3")
    assert "resume:" in (branch / "training_config.yaml").read_text()
    assert losses(branch) == losses(whole)[3:]
    assert all(torch.equal(tiny.read_states(whole)[name], each) for name, each in tiny.read_states(branch).items())
    # The branch is the newest run now.
    assert train(*COMMON, "args.train_iters=7", "args.resume=latest")["run_folder"] == str(branch)


def test_a_run_without_a_checkpoint_starts_again(train, tmp_path):
    """Not the older one, which is finished: its summary stays as it is."""
    older = Path(train("args.train_iters=2")["run_folder"])
    killed = older.with_name("tiny-12-31-23-59")
    killed.mkdir()
    record_start(killed, "tiny", 0, "process 1 on host a")
    (killed / ".2.partial").mkdir()
    summary = (older / "summary.json").read_text()
    again = train("args.train_iters=2", "args.resume=latest")
    assert again["run_folder"] == str(killed) and checkpoints(killed) == ["2"]
    assert losses(killed) == losses(older) and (older / "summary.json").read_text() == summary
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".")]


def test_a_finished_run_says_so_and_stays_as_it_is(train, caplog, monkeypatch):
    run = Path(train("args.train_iters=2")["run_folder"])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    caplog.clear()
    with caplog.at_level("INFO", logger="cogvideox"):
        summary = train("args.train_iters=2", "args.resume=latest")
    (line,) = caplog.messages
    assert line == (
        f"nothing to do: all 2 of 2 iterations are done, and the checkpoint is {run / '2'}; "
        "to train on, give more, e.g. args.train_iters=4"
    )
    assert summary == json.loads((run / "summary.json").read_text()) and summary["checkpoint"] == str(run / "2")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_saving_comes_before_evaluation(train, tmp_path, monkeypatch):
    """What fails, or is stopped, while evaluating costs nothing; going on makes up for the evaluation."""
    common = ("args.train_iters=2", "args.eval_split=0.25")

    def fail(self: Trainer, step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    whole = train(*common, save="whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "_evaluate", fail)
        train(*common)
    (run,) = (tmp_path / "runs").iterdir()
    assert checkpoints(run) == ["2"] and not (run / "summary.json").exists()
    summary = train(*common, "args.resume=latest")
    assert summary["run_folder"] == str(run) and summary["checkpoint"] == str(run / "2")
    assert summary["valid_loss"] == whole["valid_loss"][1:]


def test_two_runs_on_one_folder(train, tmp_path):
    run = Path(train("args.train_iters=1")["run_folder"])
    with RunLock() as lock:
        lock.take(run)
        with pytest.raises(CheckpointError, match=rf"is being written by process {os.getpid()} on host "):
            train("args.train_iters=2", "args.resume=latest")
    assert checkpoints(run) == ["1"]


def test_a_run_that_moved_with_its_base(train, family, tmp_path):
    """args.load, or args.base_model, names the place where the base is now; it is recorded from then on."""
    base = tmp_path / "models" / "transformer"
    shutil.copytree(family.transformer, base)
    run = Path(train("args.train_iters=1", f"args.load={base}")["run_folder"])
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"needs its base .*: it is not there\. .* args\.base_model=PATH"):
        train("args.train_iters=2", "args.resume=latest", f"args.load={base}")
    train("args.train_iters=2", "args.resume=latest", f"args.load={moved}")
    extra = torch.load(run / "2" / "mp_rank_00_model_states.pt", weights_only=True)["cogvideox"]
    assert extra["base"]["path"].startswith(str(moved))
    shutil.rmtree(run / "2")
    (run / "latest").write_text("1")
    train("args.train_iters=2", "args.resume=latest", f"args.load={base}", f"args.base_model={moved}")
    assert checkpoints(run) == ["1", "2"]


def test_what_differs_after_a_resume_is_said(train, family, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    run = train("args.train_iters=2")
    fewer = tmp_path / "fewer"
    shutil.copytree(family.clips, fewer, ignore=shutil.ignore_patterns("07_*"))
    with caplog.at_level("WARNING", logger="cogvideox"):
        train("args.train_iters=3", f"args.resume={run['run_folder']}", f"args.train_data=[{fewer}]")
    assert "the clips are not those of the run that was saved" in caplog.text
    assert f"args.train_data ['{family.clips}'] -> ['{fewer}']" in caplog.text
    assert "training_config.yaml: args.train_iters 2 -> 3" in caplog.text
    caplog.clear()
    train("args.train_iters=3", f"args.resume={run['run_folder']}", f"args.train_data=[{fewer}]")
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
        train(f"args.resume={run['run_folder']}", "args.train_iters=2", "deepspeed.zero_optimization.stage=1")
