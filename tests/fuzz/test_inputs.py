"""The fuzz script, reduced: some cases of every kind that needs no process of its own; all of them behind `slow`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.kinds import KINDS
from fuzz.run import prepared

QUICK = [name for name in KINDS if not name.startswith("diffusers")]  # those make a whole pipeline first
CASES = 6


@pytest.mark.parametrize("name", QUICK)
def test_some_inputs_of_each_kind(name: str) -> None:
    with prepared(name, seed=1) as run:
        answers = [run(index) for index in range(CASES)]
    assert not [answer for answer in answers if answer.is_wrong]


def test_the_same_seed_gives_the_same_inputs() -> None:
    outcomes = []
    for _ in range(2):
        with prepared("latest", seed=5) as run:
            outcomes.append([run(index).outcome for index in range(24)])
    assert outcomes[0] == outcomes[1] and len(set(outcomes[0])) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_inputs() -> None:
    script = Path(__file__).with_name("inputs.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert sum(kind.count for kind in KINDS.values()) >= 500
