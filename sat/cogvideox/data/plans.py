"""Which samples the batches of a process hold: pure functions of the order, and of which process it is.

Letters: b batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cogvideox.data.order import SampleOrder, bucket_schedule


@dataclass(frozen=True)
class StreamPosition:
    """How far a run has come in its samples.

    total: samples that all processes have taken; taken: the same by bucket ("49x480x720"), where it is known.
    """

    total: int = 0
    taken: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchPlan:
    """One process's rows of a batch.

    bucket: number of the bucket of all of them; places: of the rows in the bucket's stream; positions: in the stream of
    all samples of the run; counted: which rows count; after: where the run is when all processes have this batch.
    """

    bucket: int
    places: tuple[int, ...]
    positions: tuple[int, ...]
    counted: tuple[bool, ...]
    after: StreamPosition


@dataclass(frozen=True)
class BatchShare:
    """How a global batch is shared out: which process of how many, and in how many micro batches of a step."""

    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    def size(self, micro: int) -> int:
        """Samples of a global batch whose micro batches have so many on each process."""
        return micro * self.world_size * self.accumulation


def training_plans(
    order: SampleOrder, names: Sequence[str], micro: Sequence[int], share: BatchShare, seed: int, start: StreamPosition
) -> Iterator[BatchPlan]:
    """Without end. All processes have the same bucket in every micro batch, and all micro batches of a step have too.

    A global batch is a range of one bucket's stream, and every process takes its rows of every micro batch's part of
    it. So what a global batch holds depends neither on the number of processes nor on how it is split.

    Args:
        names: of the buckets; micro: micro batch size of each; start: see starting_counts.
    """
    counts, total = starting_counts(order, names, start), start.total
    for bucket in bucket_schedule(order, [share.size(size) for size in micro], names, seed, counts):
        size = micro[bucket]
        for _ in range(share.accumulation):
            own = share.rank * size
            places = tuple(range(counts[bucket] + own, counts[bucket] + own + size))
            positions = tuple(range(total + own, total + own + size))
            counts[bucket] += size * share.world_size
            total += size * share.world_size
            after = StreamPosition(total, dict(zip(names, counts, strict=True)))
            yield BatchPlan(bucket, places, positions, (True,) * size, after)


def starting_counts(order: SampleOrder, names: Sequence[str], start: StreamPosition) -> list[int]:
    """How much of each bucket's stream is behind a run. Where that isn't known for these buckets (a run that was saved
    without or with others), each one has its share."""
    if set(start.taken) == set(names):
        return [start.taken[name] for name in names]
    if len(names) == 1:
        return [start.total]
    whole = int(order.counts.sum())
    return [start.total * int(count) // whole for count in order.counts]


def evaluation_plans(order: SampleOrder, micro: int, share: BatchShare) -> Iterator[BatchPlan]:
    """One pass over all samples, bucket by bucket; every process gets the same number of batches, see count_batches.

    Row j of batch k of a bucket is its sample k * world_size * b + j. Rows beyond the last sample repeat others and are
    not counted.
    """
    before = 0
    for bucket, count in enumerate(map(int, order.counts)):
        for first in range(0, count, micro * share.world_size):
            own = range(first + share.rank * micro, first + (share.rank + 1) * micro)
            after = StreamPosition(before + min(first + micro * share.world_size, count))
            counted = tuple(place < count for place in own)
            yield BatchPlan(bucket, tuple(own), tuple(before + place for place in own), counted, after)
        before += count


def count_batches(order: SampleOrder, micro: int, world_size: int) -> int:
    """Batches of each process in a pass."""
    return sum(-(-int(count) // (micro * world_size)) for count in order.counts)
