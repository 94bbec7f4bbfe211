"""Every value is in exactly one bar."""

from __future__ import annotations

from cogvideox.doctor.histograms import histogram, most_common
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=200))
def test_bars_hold_all_values(values: list[float]) -> None:
    bars = histogram(values, "seconds")
    assert sum(bars["counts"]) == len(values)
    assert len(bars["labels"]) == len(bars["counts"]) <= 13
    if len({round(value, 2) for value in values}) > 12:
        edges = [tuple(map(float, label.split(" to "))) for label in bars["labels"]]
        for (low, high), count in zip(edges, bars["counts"], strict=True):
            inside = sum(low + 0.01 <= value < high - 0.01 for value in values)
            near = sum(low - 0.01 <= value < high + 0.01 for value in values)
            assert inside <= count <= near


def test_few_values_have_a_bar_each() -> None:
    bars = histogram([24, 24.001, 30, 8], "per second")
    assert bars == {"unit": "per second", "labels": ["8", "24", "30"], "counts": [1, 2, 1]}


def test_rare_names_go_together() -> None:
    names = [f"name {number}" for number in range(20)] + ["name 3"]
    bars = most_common(names, "pixels")
    assert bars["labels"][0] == "name 3" and bars["labels"][-1] == "9 others"
    assert sum(bars["counts"]) == 21
