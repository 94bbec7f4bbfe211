"""Numbers counted in bars, and the bars as SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

_MOST_BARS = 12
_NICE = (1, 2, 2.5, 5, 10)


def histogram(values: Sequence[float], unit: str, digits: int = 2) -> dict[str, Any]:
    """{"unit", "labels", "counts"}: a bar for each value where there are few, else of equal steps of a round width."""
    distinct = sorted({round(value, digits) for value in values})
    if len(distinct) <= _MOST_BARS:
        counts = Counter(round(value, digits) for value in values)
        return {
            "unit": unit,
            "labels": [plain(value) for value in distinct],
            "counts": [counts[value] for value in distinct],
        }
    step = _round_step((distinct[-1] - distinct[0]) / (_MOST_BARS - 1))
    first = math.floor(distinct[0] / step)
    number = math.floor(distinct[-1] / step) - first + 1
    found = [0] * number
    for value in values:
        found[min(max(math.floor(value / step) - first, 0), number - 1)] += 1
    labels = [f"{plain((first + each) * step)} to {plain((first + each + 1) * step)}" for each in range(number)]
    return {"unit": unit, "labels": labels, "counts": found}


def most_common(names: Sequence[str], unit: str) -> dict[str, Any]:
    """The same of names: the most frequent ones, and the rest together."""
    counts = Counter(names).most_common()
    bars = counts if len(counts) <= _MOST_BARS else counts[: _MOST_BARS - 1]
    rest = len(names) - sum(count for _, count in bars)
    labels, found = [name for name, _ in bars], [count for _, count in bars]
    if rest:
        labels, found = [*labels, f"{len(counts) - len(bars)} others"], [*found, rest]
    return {"unit": unit, "labels": labels, "counts": found}


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(nice * power for nice in _NICE if nice * power >= least * (1 - 1e-9))


def plain(value: float) -> str:
    """A number as people write it."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
