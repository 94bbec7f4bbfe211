"""The order of samples and the randomness of their augmentation: functions of (seed, epoch, sample id) and
nothing else.

Nothing here keeps a random state, so the same numbers come out on every world size, batch split and after
every resume, and they don't depend on how a version of numpy or torch draws.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

SampleIds = NDArray[np.int64]


def hash_words(*words: int | str) -> int:
    """63 bits that depend on every word and on their order."""
    text = "\0".join(str(word) for word in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def hash_each(word: str, others: Iterable[str]) -> SampleIds:
    """int64 [n]: hash_words(word, other) of each, in a sixth of its time. An `other` may be several, joined by NUL."""
    begun, hashes = hashlib.blake2b(f"{word}\0".encode(), digest_size=8), list[bytes]()
    for other in others:
        each = begun.copy()  # half the price of a new one
        each.update(other.encode())
        hashes.append(each.digest())
    return (np.frombuffer(b"".join(hashes), "<u8") >> np.uint64(1)).astype(np.int64)


def uniform(seed: int, epoch: int, sample_id: int, what: str) -> float:
    """A number in [0, 1) for one use (`what`) in one sample."""
    return hash_words("uniform", seed, epoch, sample_id, what) / 2**63


def epoch_order(sample_ids: SampleIds, seed: int, epoch: int) -> NDArray[np.int64]:
    """A shuffled order, int64 [number of samples]: the samples sorted by a hash of (seed, epoch, sample id)."""
    return np.argsort(_order_keys(sample_ids, seed, epoch), kind="stable")


def _order_keys(sample_ids: SampleIds, seed: int, epoch: int) -> NDArray[np.uint64]:
    """The mixing is the finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection: distinct ids never tie."""
    return _mix(sample_ids.astype(np.uint64) ^ np.uint64(hash_words("order", seed, epoch)))


def _mix(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class Choices:
    """The buckets that samples may be drawn for, anew in each epoch.

    Args:
        rows: int64 [n], the row of `table` that each sample has.
        table: numbers of buckets, ascending, at least one in each row.
    """

    rows: NDArray[np.int64]
    table: tuple[tuple[int, ...], ...]

    def drawn(
        self, ids: SampleIds, indices: NDArray[np.int64], visits: NDArray[np.int64], seed: int
    ) -> NDArray[np.int64]:
        """A bucket for each entry: a function of (seed, visit, sample id).

        Args:
            ids: int64 [n], of all samples.
            indices, visits: int64 [entries], which sample it is and how often it was there before.
        """
        rows = self.rows[indices]
        keys = ids[indices].astype(np.uint64) ^ _mix(visits.astype(np.uint64) + np.uint64(1))
        words = _mix(keys ^ np.uint64(hash_words("bucket", seed)))
        return self._padded[rows, (words % self._counts[rows]).astype(np.int64)]

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The buckets that any sample may be drawn for."""
        return tuple(sorted({bucket for row in np.unique(self.rows).tolist() for bucket in self.table[row]}))

    @cached_property
    def _counts(self) -> NDArray[np.uint64]:
        return np.array([len(row) for row in self.table], np.uint64)

    @cached_property
    def _padded(self) -> NDArray[np.int64]:
        """`table` as an array; what stands behind a row's end is never read."""
        longest = max(map(len, self.table))
        return np.array([row + (0,) * (longest - len(row)) for row in self.table], np.int64)


@dataclass(frozen=True, eq=False)
class OrderedSamples:
    """What an order is a function of, beside its seed.

    Args:
        ids: int64 [n], the samples' ids.
        buckets: int64 [n], the bucket of each; None where there is one.
        choices: those that each may be drawn for; None where each keeps its own.
        sources: int64 [n], the number of the source that each comes from; None where there is one.
        repeats: how often the samples of each source are seen per epoch, above 0; for all sources or none.
        num_buckets: of which the above are numbers.
        views: after how many visits of a sample the buckets drawn for it come again; None: never.
    """

    ids: SampleIds
    buckets: NDArray[np.int64] | None = None
    choices: Choices | None = None
    sources: NDArray[np.int64] | None = None
    repeats: tuple[float, ...] = ()
    num_buckets: int = 1
    views: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """One epoch: samples and how often each was there before, grouped by bucket. starts: [number of buckets + 1]."""

    indices: NDArray[np.int64]
    visits: NDArray[np.int64]
    starts: NDArray[np.int64]


class SampleOrder:
    """Endless streams of samples, one for every bucket: all epochs' orders one after the other.

    An epoch holds every sample as often as its source's repeats say: once, where there are none. Position p of a
    bucket's stream lies in the epoch that the bucket's earlier epochs end before. A batch is a range of positions of
    one stream, so it may straddle epochs, and nothing is ever left over: what doesn't fill a batch goes on into the
    next epoch. A bucket with fewer samples than a batch has rows fills it from several epochs.
    """

    def __init__(self, samples: OrderedSamples, seed: int, shuffle: bool = True) -> None:
        assert len(samples) > 0, "an order needs samples"
        self._samples, self._seed, self._shuffle = samples, seed, shuffle
        # Where buckets have few samples, a batch reaches over many epochs, which are then small.
        self._epoch = lru_cache(maxsize=min(256, max(3, 1_000_000 // len(samples))))(self._compute_epoch)
        self._ends: list[NDArray[np.int64]] = []  # of epochs in every bucket's stream, where they differ
        self._is_regular = samples.choices is None and all(each == int(each) for each in samples.repeats)
        self.counts = np.diff(self._epoch(0).starts)

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The buckets that samples may have."""
        samples = self._samples
        if samples.choices is not None and samples.views is not None:  # a few draws, which may leave a bucket out
            draws = [self._drawn(*np.broadcast_arrays(np.arange(len(samples)), view)) for view in range(samples.views)]
            return tuple(np.unique(draws).tolist())
        if samples.choices is not None:
            return samples.choices.used
        return (0,) if samples.buckets is None else tuple(np.unique(samples.buckets).tolist())

    def at(self, position: int, substitute: int = 0, bucket: int = 0) -> tuple[int, int]:
        """(how often it was there before, index of the sample) at a position of a bucket's stream.

        The first number is the epoch where all sources are seen once per epoch. `substitute` = k > 0 gives the k-th
        sample after it in the same epoch's order (going round at its end): what takes the place of files that can't be
        read. It is the same sample on every number of processes.
        """
        number, place = self._locate(bucket, position)
        epoch = self._epoch(number)
        first, end = int(epoch.starts[bucket]), int(epoch.starts[bucket + 1])
        entry = first + (place + substitute) % (end - first)
        return int(epoch.visits[entry]), int(epoch.indices[entry])

    def in_first_epoch(self, index: int) -> list[tuple[int, int]]:
        """(bucket, position) of each time that a sample comes in the first epoch, bucket by bucket."""
        epoch = self._epoch(0)
        entries = np.flatnonzero(epoch.indices == index)
        buckets = np.searchsorted(epoch.starts, entries, side="right") - 1
        return list(zip(buckets.tolist(), (entries - epoch.starts[buckets]).tolist(), strict=True))

    def size(self, position: int, bucket: int = 0) -> int:
        """How many entries the epoch has in which a position of a bucket's stream lies."""
        starts = self._epoch(self._locate(bucket, position)[0]).starts
        return int(starts[bucket + 1] - starts[bucket])

    def time(self, position: float, bucket: int = 0) -> float:
        """Where a position of a bucket's stream lies, counted in epochs."""
        number, place = self._locate(bucket, int(position))
        starts = self._epoch(number).starts
        return number + (place + position - int(position)) / int(starts[bucket + 1] - starts[bucket])

    def _locate(self, bucket: int, position: int) -> tuple[int, int]:
        """(number of the epoch, place in it)."""
        assert bucket in self.used, f"bucket {bucket} is empty"
        if self._is_regular:
            return divmod(position, int(self.counts[bucket]))
        while not self._ends or self._ends[-1][bucket] <= position:
            before = self._ends[-1] if self._ends else np.zeros(self._samples.num_buckets, np.int64)
            self._ends.append(before + np.diff(self._epoch(len(self._ends)).starts))
        number = bisect.bisect_right(self._ends, position, key=lambda ends: ends[bucket])
        return number, position - int(self._ends[number - 1][bucket] if number else 0)

    def _compute_epoch(self, number: int) -> _Epoch:
        indices, visits = self._entries(number)
        buckets = self._buckets_of(indices, visits)
        if buckets is None:
            return _Epoch(indices, visits, np.array([0, len(indices)]))
        grouped = np.argsort(buckets, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=self._samples.num_buckets))])
        return _Epoch(indices[grouped], visits[grouped], starts)

    def _entries(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of an epoch in their order, and how often each was there before."""
        ids = self._samples.ids
        if not self._samples.repeats or set(self._samples.repeats) == {1.0}:
            order = epoch_order(ids, self._seed, number) if self._shuffle else np.arange(len(ids))
            return order, np.full(len(order), number)
        parts = [self._share_of(source, number) for source in range(len(self._samples.repeats))]
        indices, visits, again = (np.concatenate(each) for each in zip(*parts, strict=True))
        if not self._shuffle:
            return indices, visits
        # A sample's second entry in an epoch has an id of its own.
        other = ids[indices] ^ np.where(again > 0, _mix(again.astype(np.uint64)).astype(np.int64), 0)
        order = epoch_order(other, self._seed, number)
        return indices[order], visits[order]

    def _share_of(self, source: int, number: int) -> tuple[NDArray[np.int64], ...]:
        """A source's entries of an epoch: the next ones of its own endless stream, as many in every epoch."""
        assert self._samples.sources is not None, "repeats are those of sources"
        members = np.flatnonzero(self._samples.sources == source)
        if not len(members):
            return members, members, members
        count = len(members)
        per_epoch = max(1, round(count * self._samples.repeats[source]))
        positions = np.arange(number * per_epoch, (number + 1) * per_epoch)
        rounds, places = positions // count, positions % count
        orders = {int(each): self._round(members, source, int(each)) for each in np.unique(rounds)}
        indices = np.concatenate([orders[each][places[rounds == each]] for each in orders])
        return indices, rounds, rounds - number * per_epoch // count

    def _round(self, members: NDArray[np.int64], source: int, number: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return members
        return members[epoch_order(self._samples.ids[members], hash_words("source", self._seed, source), number)]

    def _buckets_of(self, indices: NDArray[np.int64], visits: NDArray[np.int64]) -> NDArray[np.int64] | None:
        samples = self._samples
        if samples.choices is not None:
            return self._drawn(indices, visits)
        return None if samples.buckets is None else samples.buckets[indices]

    def _drawn(self, indices: NDArray[np.int64], visits: NDArray[np.int64]) -> NDArray[np.int64]:
        samples = self._samples
        assert samples.choices is not None
        seen = visits if samples.views is None else visits % samples.views
        return samples.choices.drawn(samples.ids, indices, seen, self._seed)


def bucket_schedule(
    order: SampleOrder, batch_sizes: Sequence[int], names: Sequence[str], seed: int, taken: Sequence[int]
) -> Iterator[int]:
    """Which bucket each global batch is of, without end.

    The j-th batch of a bucket that has n of its samples per epoch and takes B of them at a time comes at a random
    moment of its own share of the epochs, j B / n to (j + 1) B / n. So buckets are mixed evenly, no epoch runs ahead of
    another by more than a batch of each bucket, and where to go on is known from what was taken alone.

    Args:
        batch_sizes: samples of a global batch, of each bucket.
        names: of the buckets; with the seed they decide on the moments.
        taken: how many samples of each bucket's stream are behind us.
    """
    taken = list(taken)

    def moment(bucket: int) -> float:
        jitter = hash_words("batch", seed, names[bucket], taken[bucket]) / 2**63
        return order.time(taken[bucket] + jitter * batch_sizes[bucket], bucket)

    moments = {bucket: moment(bucket) for bucket in order.used} if len(order.used) > 1 else {}
    while True:
        bucket = min(moments, key=lambda each: (moments[each], names[each])) if moments else order.used[0]
        yield bucket
        taken[bucket] += batch_sizes[bucket]
        if moments:
            moments[bucket] = moment(bucket)
