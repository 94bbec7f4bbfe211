"""Programs of this folder, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment() -> dict[str, str]:
    """Compiled libraries come from the usual cache, which outlives the tests; CI may name another in
    FAKE_CUDA_CACHE."""
    kept = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    own = {"XDG_CACHE_HOME": os.environ["FAKE_CUDA_CACHE"]} if "FAKE_CUDA_CACHE" in os.environ else {}
    return {**kept, **own, "OMP_NUM_THREADS": "1"}


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, whatever that is."""
    command = [sys.executable, str(program), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)


def answers(program: str, *words: str) -> list[str]:
    """The lines of JSON that a program of this folder prints."""
    done = run(HERE / program, *words)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("{")]
