"""A test of the tests: mistakes made on purpose in a run on the simulated device are found."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_cuda.mistakes import MISTAKES
from fake_cuda.programs import answers

pytestmark = pytest.mark.timeout(1200)  # a process of minutes on a busy machine, for all tests of this file

PLACE = "model/video_diffusion.py:forward"  # of this program, where the mistakes are


DEFAULT = ("forgotten_device", "number_on_the_host", "right_copy", "cut_off")


def _find(*names: str) -> dict[str, Any]:
    return {answer["name"]: answer for answer in map(json.loads, answers("mistakes.py", *names))}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return _find(*DEFAULT)


def test_a_tensor_on_the_wrong_device_ends_the_run(found: dict[str, Any]) -> None:
    assert "two devices, cuda:0 and cpu" in found["forgotten_device"]["error"]


def test_a_wait_is_seen_where_it_is(found: dict[str, Any]) -> None:
    assert ["forward", "read", PLACE] in found["number_on_the_host"]["waits"]


@pytest.mark.slow
def test_every_kind_of_wait_is_seen() -> None:
    kinds = {"truth_on_the_host": "read", "synchronised": "sync", "waiting_copy": "to device"}
    kinds["copy_from_unpinned_memory"] = "to device"
    assert {*kinds, *DEFAULT} == {*MISTAKES}
    found = _find(*kinds)
    for mistake, kind in kinds.items():
        assert ["forward", kind, PLACE] in found[mistake]["waits"], mistake


def test_what_is_right_is_not_seen(found: dict[str, Any]) -> None:
    assert not [wait for wait in found["right_copy"]["waits"] if wait[2] == PLACE] and not found["right_copy"]["error"]


def test_a_weight_without_gradient_is_named(found: dict[str, Any]) -> None:
    names = found["cut_off"]["without_gradient"]
    assert names and all(".matrix_B." in name for name in names)
    assert not found["right_copy"]["without_gradient"]
