"""What the tests of both methods compare, so that each method has a file, and a process, of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fake_cuda.counting import count_here, written
from simulated_cuda.published import MODELS, SHIPPED, job, key

# Counted by default. Image-to-video models differ in the first layer and in one more frame to encode.
DEFAULT = ("2b", "5b", "1.5")
OTHERS = tuple(model for model in MODELS if model not in DEFAULT)


def count_method(method: str, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """These models by name."""
    answers = count_here([job(model, method, SHIPPED) for model in models])
    return {model: answers[job(model, method, SHIPPED)["name"]] for model in models}


def check_memory(answer: dict[str, Any], model: str, method: str) -> None:
    """The same bytes as in the table of docs/memory.md, part by part and phase by phase."""
    assert answer["memory"] == written()[f"{model} {method}"][key(*SHIPPED)]["memory"]


def check_work(answer: dict[str, Any], model: str, method: str) -> None:
    """No more operators, and no more bytes touched, than when the table was written. They may only fall."""
    before = written()[f"{model} {method}"][key(*SHIPPED)]
    for what in ("launches", "touched"):
        assert answer[what].keys() == before[what].keys()
        grown = {
            phase: (count, before[what][phase]) for phase, count in answer[what].items() if count > before[what][phase]
        }
        assert not grown, f"{what}: {grown}"
