"""How the rows of batches are read: by the pool's workers, failed files replaced by the samples that follow them.

Letters: b batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from cogvideox.data.clips import ReadDone, SampleReader
from cogvideox.data.dataset import VideoDataset
from cogvideox.data.order import SampleOrder
from cogvideox.data.plans import BatchPlan
from cogvideox.data.pool import DecodePool, Task, open_pool
from cogvideox.data.report import shown
from cogvideox.data.rows import Batch, Rows
from cogvideox.data.sample import choose_caption
from cogvideox.data.survey import Failure
from cogvideox.errors import DataError
from cogvideox.log import get_logger

_log = get_logger(__name__)


@dataclass(eq=False)
class _Row:
    """A row under way: the sample that is tried now, after so many substitutes. place: in its bucket's stream."""

    bucket: int
    place: int
    position: int
    counted: bool
    into: dict[str, Tensor]
    reader: SampleReader
    substitutes: int = 0
    epoch: int = 0
    index: int = 0
    ready: bool = False


@dataclass(eq=False)
class _UnderWay:
    plan: BatchPlan
    reader: SampleReader
    values: dict[str, Tensor]  # [b, ...]
    rows: tuple[_Row, ...]


class BatchReader:
    """Turns plans into batches, and keeps all workers busy with the batches that follow."""

    def __init__(
        self,
        dataset: VideoDataset,
        order: SampleOrder,
        *,
        seed: int,
        num_workers: int,
        pin_memory: bool,
        count_substitutes: bool,
    ) -> None:
        self.pool: DecodePool = open_pool(dataset.reader, num_workers, dataset.clip_timeout_s)
        self.failures: dict[str, str] = {}
        self._num_unreadable = 0
        self._last_failure = ""
        self.read_by: dict[str, int] = {}
        self._dataset = dataset
        self._order = order
        self._seed = seed
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._count_substitutes = count_substitutes
        self._under_way: deque[_UnderWay] = deque()
        self.num_online = 0  # rows of batches that a cache could not give

    def batches(self, plans: Iterator[BatchPlan]) -> Iterator[Batch]:
        """One batch for every plan; ends early when the pool is told to stop waiting.

        Raises:
            DataError: too many files have failed.
        """
        under_way = self._under_way
        while True:
            while self._wants_more(under_way):
                plan = next(plans, None)
                if plan is None:
                    break
                self._begin(plan)
            if not under_way:
                return
            while not all(row.ready for row in under_way[0].rows):
                result = self.pool.next_result()
                if result is None:
                    return
                self._settle(*result)
            yield self._finish(under_way.popleft())

    def _wants_more(self, under_way: deque[_UnderWay]) -> bool:
        """Behind the batch that is waited for, every worker shall have a row of a later one."""
        later = sum(len(batch.rows) for batch in islice(under_way, 1, None))
        return not under_way or later < self._num_workers

    def _begin(self, plan: BatchPlan) -> None:
        self._under_way.append(_UnderWay(plan, self._dataset.reader, {}, ()))
        self._ask(self._under_way[-1])

    def _ask(self, batch: _UnderWay) -> None:
        """Ask the batch's reader for all of its rows."""
        reader, plan = batch.reader, batch.plan
        batch.values = {
            name: torch.empty((len(plan.positions), *field.shape), dtype=field.dtype, pin_memory=self._pin_memory)
            for name, field in reader.fields(self._dataset.buckets[plan.bucket]).items()
        }
        batch.rows = tuple(
            _Row(plan.bucket, *where, {name: value[row] for name, value in batch.values.items()}, reader)
            for row, where in enumerate(zip(plan.places, plan.positions, plan.counted, strict=True))
        )
        for row in batch.rows:
            self._try(row)

    def _ask_fallback(self, missing: _Row, failure: Failure) -> None:
        """All rows of a batch hold the same, so one that isn't cached has the others read anew with it. Their results
        may still come, and nobody waits for them."""
        batch = next((each for each in self._under_way if missing in each.rows), None)
        if batch is None:  # it has been asked anew already
            return
        if batch.reader.fallback is None:
            raise DataError(shown(failure.reason))
        batch.reader = batch.reader.fallback
        self.num_online += len(batch.rows)
        self._ask(batch)

    def _try(self, row: _Row) -> None:
        """Ask for the row's sample, or the first one after it that has not failed."""
        bucket = self._dataset.buckets[row.bucket]
        while True:
            row.epoch, row.index = self._order.at(row.place, row.substitutes, row.bucket)
            sample = self._dataset.samples[row.index]
            if sample.label not in self.failures:
                break
            row.substitutes += 1
            row.counted = row.counted and self._count_substitutes
            if row.substitutes == self._order.size(row.place, row.bucket):
                raise DataError(f"none of the videos of bucket {bucket} can be used; the last: {self._last_failure}")
        job = row.reader.job(sample, bucket, self._seed, row.epoch)
        self.pool.submit(Task(row, job, row.into))

    def _settle(self, key: object, outcome: object) -> None:
        assert isinstance(key, _Row), key
        if not any(key in batch.rows for batch in self._under_way):
            return  # of a batch that has been asked anew
        if isinstance(outcome, Failure) and outcome.not_cached:
            self._ask_fallback(key, outcome)
            return
        if isinstance(outcome, Failure):
            self._note_failure(self._dataset.samples[key.index].label, outcome)
            self._try(key)
            return
        assert isinstance(outcome, ReadDone), outcome
        media, asked = self._dataset.samples[key.index].media, key.reader.name
        if outcome.reader not in (asked, *self.read_by) and not media.is_image:
            by = outcome.reader
            _log.info("%s is read by %s instead of %s; further ones are only counted", shown(media.label), by, asked)
        self.read_by[outcome.reader] = self.read_by.get(outcome.reader, 0) + 1
        key.ready = True

    def _note_failure(self, path: str, failure: Failure) -> None:
        """Leave a file out from now on. One that turns out to be too short can be read, and is treated as
        `short_clips` says."""
        if path in self.failures:
            return
        reason = shown(failure.reason)
        if failure.too_short and self._dataset.short_clips == "error":
            raise DataError(f"{reason}; data.short_clips=skip leaves such clips out, data.short_clips=pad takes them")
        self.failures[path] = self._last_failure = failure.reason
        self._num_unreadable += not failure.too_short
        total, share = len(self._dataset), self._dataset.max_failed_share
        _log.warning("left out from now on, another clip takes its place: %s", reason)
        if self._num_unreadable > share * total:
            raise DataError(
                f"{self._num_unreadable} of {total} videos failed to decode, more than "
                f"max_failed_share={share:g} allows; the last: {reason}"
            )
        if len(self.failures) == total:
            raise DataError(f"none of the {total} videos can be used; the last: {reason}")

    def _finish(self, batch: _UnderWay) -> Batch:
        samples = [self._dataset.samples[row.index] for row in batch.rows]
        rows = Rows(
            sample_ids=torch.tensor([sample.sample_id for sample in samples], dtype=torch.int64),
            epochs=torch.tensor([row.epoch for row in batch.rows], dtype=torch.int64),
            positions=torch.tensor([row.position for row in batch.rows], dtype=torch.int64),
            counted=torch.tensor([row.counted for row in batch.rows]),
            captions=tuple(
                choose_caption(sample, self._seed, row.epoch, self._dataset.captions)
                for sample, row in zip(samples, batch.rows, strict=True)
            ),
            sources=tuple(sample.label for sample in samples),
            bucket=self._dataset.buckets[batch.plan.bucket],
            after=batch.plan.after,
        )
        return batch.reader.batch(rows, batch.values)
