"""Published models, LoRA and all weights, with two layers on the simulated device: two steps, evaluation, a
preview and a checkpoint. An operator that mixes devices fails the run; what the host waits for is known, to the
number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from fake_cuda.counting import ALL, count_here, written
from fake_cuda.reasons import REASONS, WHOLE_PHASES
from simulated_cuda.published import placement_job

pytestmark = pytest.mark.timeout(1200)  # a process of minutes on a busy machine, for all tests of this file


# One of each family, the one with more inputs; the others are slow tests.
DEFAULT = ("2b lora", "5b_i2v lora", "1.5_i2v lora")
OTHERS = tuple(name for name in ALL if name not in DEFAULT)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return _run(DEFAULT)


@pytest.mark.parametrize("name", DEFAULT)
def test_placement(found: dict[str, Any], name: str) -> None:
    _check(found[f"{name}/placement"], name)


@pytest.mark.slow
def test_placement_of_the_others() -> None:
    answers = _run(OTHERS)
    for name in OTHERS:
        _check(answers[f"{name}/placement"], name)


def _run(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return count_here([placement_job(*name.split()) for name in names])


def _check(answer: dict[str, Any], name: str) -> None:
    """Every weight that trains gets its gradient on the device; the host waits only where there is a reason, and as
    often as was counted."""
    assert not answer["without_gradient"] and not answer["elsewhere"]
    assert answer["waits"], "saving alone waits"
    strange = [wait for wait in answer["waits"] if wait[0] not in WHOLE_PHASES and tuple(wait[1:3]) not in REASONS]
    assert not strange, "\n".join(map(str, strange))
    assert answer["waits"] == written()[name]["placement"]["waits"]


def test_reasons_name_functions_that_exist() -> None:
    from simulated_cuda.published import ROOT

    for _, place in REASONS:
        file, _, name = place.partition(":")
        if not place.startswith("deepspeed/") and name.isidentifier():
            source = ROOT / "sat" / "cogvideox" / file
            assert f"def {name}(" in source.read_text(), f"{place} has a reason, and is no more"
