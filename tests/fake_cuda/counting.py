"""Counts in processes of their own, and what they are compared with."""

from __future__ import annotations

from typing import Any

from fake_cuda.programs import environment
from simulated_cuda.published import METHODS, MODELS, count
from simulated_cuda.table import read_figures, versions

ALL = [f"{model} {method}" for model in MODELS for method in METHODS]


def count_here(jobs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """In one process beside this one."""
    return count(jobs, processes=1, environment=environment())


def written() -> dict[str, Any]:
    """What `python tools/memory.py --table` wrote, with the libraries of today: others may have other operators."""
    figures = read_figures()
    assert figures["versions"] == versions(), "the lock has changed: count again, python tools/memory.py --table"
    return figures
