"""Every published model, LoRA and all weights, with two layers on the simulated device: two steps, evaluation, a
preview and a checkpoint. An operator that mixes devices fails the run; what the host waits for is known, to the
number."""

from __future__ import annotations

from typing import Any

import pytest
from fake_cuda.counting import ALL, count_here, written
from fake_cuda.reasons import REASONS, WHOLE_PHASES
from simulated_cuda.published import placement_job

pytestmark = pytest.mark.timeout(1200)  # a process of minutes on a busy machine, for all tests of this file


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return count_here([placement_job(*name.split()) for name in ALL])


@pytest.mark.parametrize("name", ALL)
def test_every_weight_that_trains_gets_its_gradient_on_the_device(found: dict[str, Any], name: str) -> None:
    answer = found[f"{name}/placement"]
    assert not answer["without_gradient"] and not answer["elsewhere"]


@pytest.mark.parametrize("name", ALL)
def test_the_host_waits_only_where_there_is_a_reason(found: dict[str, Any], name: str) -> None:
    waits = found[f"{name}/placement"]["waits"]
    assert waits, "saving alone waits"
    strange = [wait for wait in waits if wait[0] not in WHOLE_PHASES and tuple(wait[1:3]) not in REASONS]
    assert not strange, "\n".join(map(str, strange))


@pytest.mark.parametrize("name", ALL)
def test_it_waits_as_often_as_was_counted(found: dict[str, Any], name: str) -> None:
    assert found[f"{name}/placement"]["waits"] == written()[name]["placement"]["waits"]


def test_reasons_name_functions_that_exist() -> None:
    from simulated_cuda.published import ROOT

    for _, place in REASONS:
        file, _, name = place.partition(":")
        if not place.startswith("deepspeed/") and name.isidentifier():
            source = ROOT / "sat" / "cogvideox" / file
            assert f"def {name}(" in source.read_text(), f"{place} has a reason, and is no more"
