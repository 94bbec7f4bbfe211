"""Other layouts than the shipped one: ZeRO 0 and 2, several GPUs. To the byte, as the table has them."""

from __future__ import annotations

import pytest
from fake_cuda.counting import ALL, count_here, written
from simulated_cuda.published import LAYOUTS, SHIPPED, job, key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each != SHIPPED], ids=lambda layout: key(*layout))
def test_memory(layout: tuple[int, int]) -> None:
    jobs = [job(*name.split(), layout) for name in ALL]
    found = count_here(jobs)
    wrong = [
        name
        for name, each in zip(ALL, jobs, strict=True)
        if found[each["name"]]["memory"] != written()[name][key(*layout)]["memory"]
    ]
    assert not wrong
