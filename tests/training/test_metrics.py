"""Figures are means over steps, bad runs end, files hold the published tags."""

from __future__ import annotations

import json

import pytest
import torch
from cogvideox.parallel.groups import start_process_groups
from cogvideox.training import metrics
from cogvideox.training.engine import StepResult
from cogvideox.training.metrics import BAD_STEPS_LIMIT, StepMeter, TrainingDiverged
from cogvideox.training.run_log import RunLog


def result(loss: float, norm: float = 1.0) -> StepResult:
    value = torch.tensor(loss)
    return StepResult(value, torch.tensor(norm), ~torch.isfinite(value))


def meter() -> StepMeter:
    return StepMeter(start_process_groups("cpu"))


def test_readings_are_means_since_the_last():
    each = meter()
    for loss in (1.0, 3.0):
        each.add(result(loss, norm=loss), tokens=100)
    reading = each.read(2)
    assert (reading.step, reading.loss, reading.grad_norm) == (2, 2.0, 2.0)
    assert reading.tokens == pytest.approx(100 / reading.seconds) and reading.peak_gib > 0
    each.add(result(5.0), tokens=100)
    assert each.read(3).loss == 5.0


def test_pauses_do_not_count_as_training():
    import time

    each = meter()
    each.add(result(1.0), tokens=100)
    with each.pause():
        time.sleep(0.2)
    assert each.read(1).seconds < 0.15


def test_a_run_of_bad_steps_ends_the_run_and_single_ones_do_not():
    each = meter()
    for step in range(3 * BAD_STEPS_LIMIT):
        each.add(result(1.0 if step % 2 else float("nan")), tokens=100)
    each.check(step=30)
    for _ in range(BAD_STEPS_LIMIT):
        each.add(result(float("inf")), tokens=100)
    with pytest.raises(TrainingDiverged, match=r"NaN or infinite in 10 steps in a row \(at step 40\); stopped"):
        each.check(step=40)


def test_logs_hold_the_published_tags(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    each = meter()
    each.add(result(2.0), tokens=100)
    with RunLog(tmp_path, 1, 1) as log:
        log.advance()
        log.training(each.read(1), lr=1e-3)
        log.validation(1, 0.5)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"Train/train_loss", "Train/lr", "Train/elapsed_time", "Train/valid_loss"} <= tags
    assert "Train/peak_memory_gib" in tags and "Train/peak_reserved_gib" not in tags  # on the CPU they are one
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train_loss"] == 2.0 and lines[0]["lr"] == 1e-3 and lines[1] == {"step": 1, "valid_loss": 0.5}


def test_reserved_memory_stands_beside_allocated(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(metrics, "peak_memory_gib", lambda _: [18.56, 20.125])
    each = meter()
    each.add(result(2.0), tokens=100)
    with RunLog(tmp_path, 1, 1) as log, caplog.at_level("INFO", "cogvideox"):
        log.training(each.read(1), lr=1e-3)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["peak_memory_gib"] == pytest.approx(18.56) and line["peak_reserved_gib"] == 20.125
    assert "18.6 GiB (20.1 reserved)" in caplog.text


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path, 1, 1, quiet=True) as log:
        log.advance()
        log.validation(1, 0.5)
    assert not list(tmp_path.iterdir())


def test_weights_and_biases_get_the_same_figures(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "disabled")
    sent = []
    each = meter()
    each.add(result(2.0), tokens=100)
    with RunLog(tmp_path, 1, 1, wandb_project="test") as log:
        monkeypatch.setattr(type(wandb.run), "log", lambda _, figures, step: sent.append((step, figures)))
        log.training(each.read(1), lr=1e-3)
    assert sent[0][0] == 1 and sent[0][1]["Train/train_loss"] == 2.0
