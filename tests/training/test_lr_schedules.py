"""Schedules against closed forms, and `sat` against SAT's own class."""

from __future__ import annotations

import itertools

import pytest
import torch
from cogvideox.errors import ConfigError
from cogvideox.training.lr_schedules import build_sat_schedule, build_schedule, describe_schedule


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_warm_up_is_linear_and_reaches_the_full_rate(name):
    factor = build_schedule(name, total=20, warmup_steps=4)
    assert [factor(step) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(5) == 1.0


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_decay_ends_at_the_floor_and_never_rises(name):
    factor = build_schedule(name, total=30, warmup_steps=3, min_lr_ratio=0.1)
    values = [factor(step) for step in range(4, 31)]
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_constant_stays_constant():
    factor = build_schedule("constant", total=7, min_lr_ratio=0.0)
    assert {factor(step) for step in range(1, 8)} == {1.0}


@pytest.mark.parametrize("total", [1, 2])
def test_shortest_runs(total):
    for name in ("constant", "linear", "cosine"):
        assert build_schedule(name, total=total)(1) == 1.0


@pytest.mark.parametrize("style", ["linear", "cosine", "exponential", "constant"])
@pytest.mark.parametrize("total, warmup", [(500, 0.01), (500, 0.3), (60, 0.01)])
@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
def test_sat_curve_is_sats_own(style, total, warmup, mode):
    from sat.training.learning_rates import AnnealingLR

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    hold = 100 if mode == "finetune" else 0
    theirs = AnnealingLR(
        optimizer, start_lr=1.0, warmup_iter=warmup * total, num_iters=total, decay_style=style, last_iter=0,
        decay_ratio=0.1, auto_warmup_steps=hold, auto_warmup_rate=0.05,
    )  # fmt: skip
    ours = build_sat_schedule(total, warmup=warmup, decay_style=style, decay_ratio=0.1, mode=mode)
    for step in range(1, total + 1):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        theirs.step()


def test_sat_curve_without_warm_up_does_not_divide_by_zero():
    factor = build_sat_schedule(500, warmup=0.0)
    assert factor(1) == 0.05 and factor(100) == 0.05
    assert factor(101) == pytest.approx(1 - 101 / 500)
    assert sum(factor(step) for step in range(1, 501)) / 500 == pytest.approx(0.33, abs=0.01)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: build_schedule("cosin", 10), "args.lr_schedule: 'cosin' is unknown; valid are constant"),
        (lambda: build_schedule("linear", 10, warmup_steps=11), "args.warmup_steps: 11 must lie in 0..10"),
        (lambda: build_schedule("linear", 10, min_lr_ratio=2.0), "args.min_lr_ratio: 2.0 must lie in 0..1"),
        (lambda: build_sat_schedule(10, warmup=5), "args.warmup: 5 is a share of the run"),
        (lambda: build_sat_schedule(10, decay_ratio=0.0), "args.lr_decay_ratio: 0.0 must lie in"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_description_shows_points_and_mean():
    text = describe_schedule(build_sat_schedule(500), base_lr=1e-3, total=500)
    assert "lr at step 1: 5e-05" in text and "(34% of 0.001)" in text
