"""Learning-rate schedules: the factor on the configured rate as a function of the step's number.

step: 1 for the first optimizer step, total for the last. Factors are pure functions of the step, so that a resumed
run follows the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from cogvideox.config.schema import TrainArgs
from cogvideox.errors import ConfigError

Schedule = Callable[[int], float]
ScheduleName = Literal["constant", "linear", "cosine", "sat"]

# SAT's fine-tuning mode holds the rate at 5 % for the first 100 steps, whatever else is configured.
SAT_HOLD_STEPS = 100
SAT_HOLD_FACTOR = 0.05


def build_schedule(name: ScheduleName, total: int, warmup_steps: int = 0, min_lr_ratio: float = 0.0) -> Schedule:
    """constant, linear or cosine with a linear warm-up.

    Warm-up: step k has factor k / warmup_steps, so the full rate is reached at step warmup_steps. Afterwards linear
    and cosine fall to min_lr_ratio, which the last step has.

    Raises:
        ConfigError: unknown name, warm-up longer than the run, ratio outside 0..1.
    """
    if not 0 <= warmup_steps <= total:
        raise ConfigError(f"args.warmup_steps: {warmup_steps} must lie in 0..{total} (args.train_iters)")
    if not 0.0 <= min_lr_ratio <= 1.0:
        raise ConfigError(f"args.min_lr_ratio: {min_lr_ratio} must lie in 0..1")
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    if name not in shapes:
        raise ConfigError(f"args.lr_schedule: {name!r} is unknown; valid are constant, linear, cosine, sat")
    shape = shapes[name]
    floor = 1.0 if name == "constant" else min_lr_ratio

    def factor(step: int) -> float:
        if step <= warmup_steps:
            return step / warmup_steps
        first = warmup_steps + 1
        progress = (step - first) / (total - first) if total > first else 0.0
        return floor + (1.0 - floor) * shape(min(progress, 1.0))

    return factor


def build_sat_schedule(
    total: int,
    warmup: float = 0.01,
    decay_style: str = "linear",
    decay_ratio: float = 0.1,
    mode: str = "finetune",
) -> Schedule:
    """SAT's own annealing, for old YAML that names no schedule.

    warmup: share of the run. decay_style: linear | cosine | anything else is constant, as in SAT. decay_ratio: where
    cosine ends. mode finetune: the first 100 steps run at 5 % of the rate (or at the warm-up's value if that is
    lower); then the curve continues as if nothing had happened, so that a run of 500 steps has a mean rate of 34 % of
    the configured one.

    Raises:
        ConfigError: warm-up outside 0..1, decay ratio outside (0, 1].
    Source: behaviour of SAT 0.4.12's AnnealingLR; unlike there, `warmup: 0` is no division by zero.
    """
    if not 0.0 <= warmup <= 1.0:
        raise ConfigError(f"args.warmup: {warmup} is a share of the run and must lie in 0..1")
    if not 0.0 < decay_ratio <= 1.0:
        raise ConfigError(f"args.lr_decay_ratio: {decay_ratio} must lie in (0, 1]")
    warmup_steps = warmup * total
    hold_steps = SAT_HOLD_STEPS if mode == "finetune" else 0

    def ramp(step: int) -> float:
        return step / warmup_steps if warmup_steps > 0 else math.inf

    def factor(step: int) -> float:
        if step <= hold_steps:
            return min(SAT_HOLD_FACTOR, ramp(step))
        if step <= warmup_steps:
            return ramp(step)
        progress = (step - warmup_steps) / total
        if decay_style == "linear":
            return 1.0 - progress
        if decay_style == "cosine":
            return decay_ratio * (
                1.0 + (math.cos(math.pi * min(progress, 1.0)) + 1.0) * (1.0 / decay_ratio - 1.0) / 2.0
            )
        return 1.0

    return factor


def describe_schedule(schedule: Schedule, base_lr: float, total: int, points: int = 5) -> str:
    """One line with the rate at some steps and its mean, as in `lr 1: 1e-05, 50: 5e-04, ... mean 3.4e-04 (34 %)`."""
    steps = sorted({1 + round(index * (total - 1) / max(1, points - 1)) for index in range(points)})
    curve = ", ".join(f"{step}: {base_lr * schedule(step):.3g}" for step in steps)
    mean = sum(schedule(step) for step in range(1, total + 1)) / max(1, total)
    return f"lr at step {curve}; mean {base_lr * mean:.3g} ({mean:.0%} of {base_lr:.3g})"


def make_schedule(args: TrainArgs, scale: float | None = None) -> Schedule:
    """The schedule that `args` asks for, times `scale`. Raises: ConfigError."""
    if args.lr_schedule == "sat":
        style, ratio = args.lr_decay_style, args.lr_decay_ratio
        schedule = build_sat_schedule(args.train_iters, args.warmup, style, ratio, args.mode)
    else:
        schedule = build_schedule(args.lr_schedule, args.train_iters, args.warmup_steps, args.min_lr_ratio)
    return schedule if scale is None else lambda step: scale * schedule(step)
