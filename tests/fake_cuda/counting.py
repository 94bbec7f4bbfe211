"""Counts in processes of their own, and what they are compared with."""

from __future__ import annotations

from typing import Any

import pytest
from fake_cuda.programs import environment
from simulated_cuda.published import METHODS, MODELS, count
from simulated_cuda.table import read_figures, versions

ALL = [f"{model} {method}" for model in MODELS for method in METHODS]


def count_here(jobs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """In one process beside this one."""
    return count(jobs, processes=1, environment=environment())


def written() -> dict[str, Any]:
    """What `python tools/memory.py --table` wrote. Skips under other libraries, whose operators may be others."""
    figures = read_figures()
    if figures["versions"] != versions():
        pytest.skip(f"the figures are those of {figures['versions']}, here are {versions()}")
    return figures
