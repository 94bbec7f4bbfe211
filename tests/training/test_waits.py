"""How often a step waits for the device, counted on the real engine: every value that is read on the host, and every
time DeepSpeed asks for the device to be synchronised (nothing on the CPU, where it would not be seen otherwise)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from cogvideox.training.engine import TrainEngine
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from training.toy import build, inputs, section

# Operators whose result is a number, or has a size that only the data knows.
READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default", "masked_select", "unique")


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in READING):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def waits_of_a_step(engine: TrainEngine, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the fifth step; DeepSpeed's timers begin in the third."""
    waits = Waits()
    monkeypatch.setattr(type(get_accelerator()), "synchronize", lambda *_: waits.found.update(["synchronize"]))
    for step in range(1, 6):
        waits.found.clear()
        with waits:
            engine.step(step, inputs(step).chunk(engine.sizes.accumulation))
    return waits.found.total()


@pytest.mark.parametrize(
    "stage, kind, sums, expected",
    [
        (0, "fp32", "fp32", 0),
        (0, "bf16", "fp32", 0),
        (0, "bf16", "bf16", 0),
        (1, "bf16", "fp32", 1),
        (1, "bf16", "bf16", 0),
        (2, "bf16", "fp32", 0),
        (2, "bf16", "bf16", 0),
        (1, "fp32", "fp32", 1),
        (2, "fp32", "fp32", 1),
    ],
)
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_waits_per_step(
    stage: int, kind: str, sums: str, expected: int, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = {"bf16": {"enabled": True}} if kind == "bf16" else {}
    given = section(stage, accumulation=4, micro=1, clip=clip, data_types={"grad_accum_dtype": sums}, **precision)
    assert waits_of_a_step(build(given), monkeypatch) == expected


def test_counting_finds_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(section(0))
    real = engine.step

    def reading(step: int, batches: Any) -> Any:
        result = real(step, batches)
        get_accelerator().synchronize()
        assert float(result.loss) > 0 and bool(result.loss > 0)
        return result

    monkeypatch.setattr(engine, "step", reading)
    assert waits_of_a_step(engine, monkeypatch) == 3
