"""Memory and work of a step of every published model against what was counted before, to the byte: at its size, which
docs/memory.md shows, in the slow tests; with two layers always."""

from __future__ import annotations

from typing import Any

import pytest
from fake_cuda.counting import ALL, count_here, written
from simulated_cuda.published import SHIPPED, job, key, small_job

pytestmark = pytest.mark.timeout(1800)  # a process of minutes on a busy machine, for all tests of this file

# Ten seconds of computing each; the others are slow tests.
DEFAULT = ("5b lora", "1.5 lora")
OTHERS = tuple(name for name in ALL if name not in DEFAULT)


@pytest.fixture(scope="module")
def small() -> dict[str, dict[str, Any]]:
    return count_here([small_job(*name.split()) for name in DEFAULT])


@pytest.mark.parametrize("name", DEFAULT)
def test_two_layers(small: dict[str, Any], name: str) -> None:
    _compare(small[f"{name}/small"], written()[name]["small"])


@pytest.mark.slow
def test_two_layers_of_the_others() -> None:
    for name, answer in count_here([small_job(*name.split()) for name in OTHERS]).items():
        _compare(answer, written()[name.partition("/")[0]]["small"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_published_size(name: str) -> None:
    (answer,) = count_here([job(*name.split(), SHIPPED)]).values()
    _compare(answer, written()[name][key(*SHIPPED)])


def _compare(answer: dict[str, Any], before: dict[str, Any]) -> None:
    """The same bytes in every part and phase; no more operators, and no more bytes touched: they may only fall."""
    assert answer["memory"] == before["memory"]
    for what in ("launches", "touched"):
        assert answer[what].keys() == before[what].keys()
        grown = {
            phase: (count, before[what][phase]) for phase, count in answer[what].items() if count > before[what][phase]
        }
        assert not grown, f"{what}: {grown}"
