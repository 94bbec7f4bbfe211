"""Which bucket each sample of a data set has. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cogvideox.buckets import MAX_BUCKETS
from cogvideox.data.order import Choices, SampleIds
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket


@dataclass(frozen=True, eq=False)
class BucketPlan:
    """The buckets of n samples.

    Args:
        shapes: all that samples may have, at most MAX_BUCKETS.
        numbers: int64 [n], which of them each sample has; None where there is one.
        choices: those that samples may be drawn for in training, anew in each epoch; None where each keeps its own.
    """

    shapes: tuple[Bucket, ...]
    numbers: NDArray[np.int64] | None = None
    choices: Choices | None = None

    @classmethod
    def of_choices(cls, choices: Sequence[tuple[Bucket, ...]], which: NDArray[np.int64]) -> BucketPlan:
        """From what may suit samples, the own bucket first, and which of these each sample has, int64 [n].

        Raises: DataError for more than MAX_BUCKETS.
        """
        used, which = np.unique(which, return_inverse=True)
        choices = [choices[number] for number in used.tolist()]
        shapes = tuple(sorted({shape for each in choices for shape in each}))
        if len(shapes) > MAX_BUCKETS:
            raise DataError(
                f"the clips need {len(shapes)} different buckets, more than {MAX_BUCKETS}: give data.buckets fewer "
                "frames or aspect_ratios, or a larger step"
            )
        if len(shapes) < 2:
            return cls(shapes)
        numbers = {shape: number for number, shape in enumerate(shapes)}
        own = np.array([numbers[each[0]] for each in choices], np.int64)[which]
        if all(len(each) == 1 for each in choices):
            return cls(shapes, own)
        rows = [tuple(sorted(numbers[shape] for shape in each)) for each in choices]
        table = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        places = np.array([table[row] for row in rows], np.int64)
        return cls(shapes, own, Choices(places[which], tuple(table)))

    def at(self, places: NDArray[np.int64]) -> BucketPlan:
        """Of the samples at these places."""
        return replace(
            self,
            numbers=None if self.numbers is None else self.numbers[places],
            choices=None if self.choices is None else replace(self.choices, rows=self.choices.rows[places]),
        )

    def of(self, index: int) -> tuple[Bucket, ...]:
        """All that a sample may be trained at, its own one first."""
        own = 0 if self.numbers is None else int(self.numbers[index])
        may = () if self.choices is None else self.choices.table[self.choices.rows[index]]
        return tuple(self.shapes[number] for number in dict.fromkeys((own, *may)))

    def drawn_text(self) -> str:
        """How many buckets samples are drawn for, for people; "" where each keeps its own."""
        if self.choices is None or not len(self.choices.rows):
            return ""
        counts = [len(self.choices.table[row]) for row in np.unique(self.choices.rows).tolist()]
        each = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
        used = [self.shapes[bucket] for bucket in self.choices.used]
        return (
            f"in every epoch each sample gets one of {each} buckets that suit it, drawn anew (data.buckets.vary); "
            f"{len(used)} in all, {min(used)} to {max(used)} (frames, height, width)"
        )

    def drawn_at(self, visit: int, ids: SampleIds, seed: int) -> NDArray[np.int64]:
        """int64 [n], which of `shapes` each sample has in training when it was there so often before. ids: theirs."""
        indices = np.arange(len(ids))
        if self.choices is not None:
            return self.choices.drawn(ids, indices, np.full_like(indices, visit), seed)
        return np.zeros_like(indices) if self.numbers is None else self.numbers

    def counts(self, num_samples: int) -> dict[Bucket, int]:
        """How many samples have which bucket as their own, empty ones left out."""
        if self.numbers is None:
            return {self.shapes[0]: num_samples} if self.shapes else {}
        found = np.bincount(self.numbers, minlength=len(self.shapes)).tolist()
        return {shape: count for shape, count in zip(self.shapes, found, strict=True) if count}
