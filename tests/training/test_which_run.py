"""What `args.resume` means: which run goes on, from which checkpoint, and in which folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from cogvideox.config.schema import TrainArgs
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.training.which_run import RunChoice, choose_run, finished_summary
from cogvideox.weights.runs import record_start

ME = "process 1 on host a"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    caplog.set_level("INFO", logger="cogvideox")
    return caplog


def checkpoint(run: Path, iteration: int, *, state: bool = True) -> Path:
    folder = run / str(iteration)
    (folder / "training_state").mkdir(parents=True)
    (folder / "mp_rank_00_model_states.pt").touch()
    if state:
        (folder / "training_state" / "rank_00000.pt").touch()
    (run / "latest").write_text(str(iteration))
    return folder


def run_of(save: Path, experiment: str, time: str, *iterations: int) -> Path:
    run = save / f"{experiment}-{time}"
    run.mkdir()
    record_start(run, experiment, 0, ME)
    for iteration in iterations:
        checkpoint(run, iteration)
    return run


def args(save: Path, resume: str | Path | None, load: str | None = "weights") -> TrainArgs:
    given = None if load is None else str(save / load)
    if given is not None:
        Path(given).mkdir(exist_ok=True)
    return TrainArgs("style", save=str(save), resume=None if resume is None else str(resume), load=given)


def test_a_new_run(tmp_path: Path) -> None:
    assert choose_run(args(tmp_path, None)) == RunChoice(load=tmp_path / "weights")
    run = run_of(tmp_path, "style", "06-01-12-00", 2)
    assert choose_run(args(tmp_path, None, "style-06-01-12-00")) == RunChoice(load=run / "2")
    with pytest.raises(ConfigError, match=r"args\.load: missing: .* args\.mode=pretrain"):
        choose_run(args(tmp_path, None, None))


def test_latest_is_the_newest_run_of_this_experiment(tmp_path: Path) -> None:
    run_of(tmp_path, "style", "06-01-12-00", 2)
    newer = run_of(tmp_path, "style", "06-02-12-00", 2, 4)
    run_of(tmp_path, "style-v2", "06-03-12-00", 6)
    claimed: list[Path] = []
    assert choose_run(args(tmp_path, "latest"), claimed.append) == RunChoice(resume=newer / "4", folder=newer)
    assert set(claimed) == {newer}


def test_a_run_without_a_checkpoint_is_not_passed_over(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    run_of(tmp_path, "style", "06-01-12-00", 2)
    killed = run_of(tmp_path, "style", "06-02-12-00")
    again = RunChoice(load=tmp_path / "weights", folder=killed)
    assert choose_run(args(tmp_path, "latest")) == choose_run(args(tmp_path, killed)) == again
    assert again.step == 0 and again.branched_from is None
    assert f"{killed} was stopped before its first checkpoint: it starts again from step 0, in this folder" in said.text
    with pytest.raises(ConfigError, match=r"args\.load: missing"):
        choose_run(args(tmp_path, "latest", None))


def test_an_earlier_step_gets_a_folder_of_its_own(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    run = run_of(tmp_path, "style", "06-01-12-00", 2, 4)
    claimed: list[Path] = []
    branch = choose_run(args(tmp_path, run / "2"), claimed.append)
    assert branch == RunChoice(resume=run / "2") and branch.branched_from == run / "2" and not claimed
    assert f"{run} also holds iteration 4: this run goes on from 2 in a folder of its own" in said.text
    assert choose_run(args(tmp_path, run / "4")) == RunChoice(resume=run / "4", folder=run)
    assert choose_run(args(tmp_path, run / "4" / "mp_rank_00_model_states.pt")).folder == run
    (tmp_path / "link").symlink_to(run)
    assert choose_run(args(tmp_path, tmp_path / "link" / "4")) == RunChoice(resume=run / "4", folder=run)
    (run / "latest").write_text("2")  # by hand, to go back
    assert choose_run(args(tmp_path, run)) == branch


def test_weights_that_are_newer_than_the_state(tmp_path: Path) -> None:
    """Somebody removed the state of the newest one to save space; its weights stay."""
    run = run_of(tmp_path, "style", "06-01-12-00", 2)
    checkpoint(run, 4, state=False)
    assert choose_run(args(tmp_path, run)) == RunChoice(resume=run / "2")
    with pytest.raises(CheckpointError, match=r"args\.resume: \S+/4 holds weights but no training_state/"):
        choose_run(args(tmp_path, run / "4"))


def test_a_checkpoint_that_was_taken_out_of_its_run(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    alone = checkpoint(tmp_path / "copies", 2)
    assert choose_run(args(tmp_path, alone)) == RunChoice(resume=alone)
    assert "is no run folder: this run goes on from" in said.text


@pytest.mark.parametrize(
    ("resume", "match"),
    [
        ("latest", r"args\.resume: latest, but \S+ holds no run of 'style'; there are runs of other; start without"),
        ("nowhere", r"args\.resume: no checkpoint at \S*nowhere: give latest, a run folder or an iteration folder"),
        ("weights", r"args\.resume: no checkpoint at \S+/weights: give latest"),
        ("published", r"args\.resume: \S+/published/1 holds weights but no training_state/"),
    ],
)
def test_what_can_not_be_resumed(tmp_path: Path, resume: str, match: str) -> None:
    run_of(tmp_path, "other", "06-01-12-00", 2)
    checkpoint(tmp_path / "published", 1, state=False)
    with pytest.raises(CheckpointError, match=match):
        choose_run(args(tmp_path, resume if resume == "latest" else tmp_path / resume))


@pytest.mark.parametrize(
    ("summary", "train_iters", "is_finished"),
    [
        ('{"iterations": 4}', 4, True),
        ('{"iterations": 4}', 2, True),
        ('{"iterations": 4}', 6, False),
        ('{"iterations": 2}', 4, False),  # stopped in the last evaluation, after it had gone on
        (None, 4, False),
        ("{", 4, False),
        ('{"iterations": null}', 4, False),
    ],
)
def test_nothing_left_to_do(tmp_path: Path, summary: str | None, train_iters: int, is_finished: bool) -> None:
    run = run_of(tmp_path, "style", "06-01-12-00", 4)
    if summary is not None:
        (run / "summary.json").write_text(summary)
    found = finished_summary(RunChoice(resume=run / "4", folder=run), train_iters)
    assert found == (json.loads(summary or "") if is_finished else None)
    assert finished_summary(RunChoice(load=tmp_path), train_iters) is None
