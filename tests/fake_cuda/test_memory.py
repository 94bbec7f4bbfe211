"""Memory and work of a step of every published model at its size, against what docs/memory.md says, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
from fake_cuda.counting import ALL, count_here, written
from simulated_cuda.published import SHIPPED, job, key

pytestmark = pytest.mark.timeout(1800)  # a process of minutes on a busy machine, for all tests of this file

# Half a minute of computing; the others, up to two minutes each, are slow tests.
DEFAULT = ("5b lora",)
OTHERS = tuple(name for name in ALL if name not in DEFAULT)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return count_here([_job(name) for name in DEFAULT])


@pytest.mark.parametrize("name", DEFAULT)
def test_memory_and_work(found: dict[str, Any], name: str) -> None:
    _compare(found[_job(name)["name"]], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_memory_and_work_of_the_others(name: str) -> None:
    (answer,) = count_here([_job(name)]).values()
    _compare(answer, name)


def _job(name: str) -> dict[str, Any]:
    return job(*name.split(), SHIPPED)


def _compare(answer: dict[str, Any], name: str) -> None:
    """The same bytes in every part and phase; no more operators, and no more bytes touched: they may only fall."""
    before = written()[name][key(*SHIPPED)]
    assert answer["memory"] == before["memory"]
    for what in ("launches", "touched"):
        assert answer[what].keys() == before[what].keys()
        grown = {
            phase: (count, before[what][phase]) for phase, count in answer[what].items() if count > before[what][phase]
        }
        assert not grown, f"{what}: {grown}"
