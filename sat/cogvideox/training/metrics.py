"""Figures of a run, gathered on the device and read now and then.

Reading waits for the device and talks to the other processes; it happens at `log_interval` and every few steps for
the guard against runs that have gone bad, never at every step.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from cogvideox.errors import UserError
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.training.engine import StepResult

BAD_STEPS_LIMIT = 10


class TrainingDiverged(UserError):
    """Loss or gradients stayed NaN or infinite: going on would only waste time."""


@dataclass(frozen=True)
class Reading:
    """Means since the last reading.

    loss: over all processes' samples; grad_norm: before clipping; seconds: per step; tokens: per second over all
    processes; peak_gib: most memory held so far on the fullest process (device memory on CUDA, resident memory on
    CPU). reserved_gib: the most that torch has taken from the device for it, with what lies between its tensors; None
    on the CPU.
    """

    step: int
    loss: float
    grad_norm: float
    seconds: float
    tokens: float
    peak_gib: float
    reserved_gib: float | None = None


class StepMeter:
    """Accumulates step results without touching the host."""

    def __init__(self, groups: ProcessGroups) -> None:
        self._groups = groups
        self._bad_in_a_row = torch.zeros((), device=groups.device)
        self._longest_bad_run = torch.zeros((), device=groups.device)
        self._restart()

    def _restart(self) -> None:
        self._sums = torch.zeros(2, device=self._groups.device)  # loss, gradient norm
        self._steps = self._tokens = 0
        self._started = time.perf_counter()

    def add(self, result: StepResult, tokens: int) -> None:
        """Take one step's result; scalars stay on the device. tokens: that all processes together put through the
        transformer in it."""
        self._tokens += tokens
        self._sums += torch.stack([result.loss.float(), result.grad_norm.float()])
        self._bad_in_a_row = torch.where(result.is_bad, self._bad_in_a_row + 1, 0.0)
        self._longest_bad_run = torch.maximum(self._longest_bad_run, self._bad_in_a_row)
        self._steps += 1

    def check(self, step: int) -> None:
        """Raise on all processes when any has seen too many bad steps in a row.

        Raises:
            TrainingDiverged: with what to try.
        """
        longest = int(self._groups.max(self._longest_bad_run))
        if longest >= BAD_STEPS_LIMIT:
            raise TrainingDiverged(
                f"loss or gradients were NaN or infinite in {longest} steps in a row (at step {step}); stopped, and no "
                "such weights were saved. Lower deepspeed.optimizer.params.lr, add args.warmup_steps, or train in "
                "bf16 or fp32"
            )

    def read(self, step: int) -> Reading:
        """Means since the last reading, agreed by all processes; starts over."""
        assert self._steps, "nothing to read"
        loss, norm = (self._groups.mean(self._sums) / self._steps).tolist()
        elapsed = time.perf_counter() - self._started
        seconds, tokens = elapsed / self._steps, self._tokens / elapsed
        held = torch.tensor(peak_memory_gib(self._groups.device), device=self._groups.device)
        peak, *reserved = self._groups.max(held).tolist()
        reading = Reading(step, loss, norm, seconds, tokens, peak, *reserved)
        self._restart()
        return reading

    def pause(self) -> PausedClock:
        """Context in which time doesn't count, for evaluation and saving between steps."""
        return PausedClock(self)

    def add_delay(self, seconds: float) -> None:
        """Leave that many seconds out of the time per step."""
        self._started += seconds


class PausedClock:
    """See StepMeter.pause."""

    def __init__(self, meter: StepMeter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._meter.add_delay(time.perf_counter() - self._entered)


def peak_memory_gib(device: torch.device) -> list[float]:
    """Most memory held so far: allocated and reserved on the device, or resident on the CPU."""
    if device.type == "cuda":
        return [each(device) / 2**30 for each in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [peak / (2**30 if sys.platform == "darwin" else 2**20)]  # bytes on macOS, KiB on Linux
