"""A batch, and how its rows are read: by the pool's workers, failed files replaced by the samples that follow
them.

Letters: b batch, t frames, c colours, h w pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from cogvideox.data.clips import ReadDone, ReadJob
from cogvideox.data.dataset import VideoDataset
from cogvideox.data.order import SampleStream
from cogvideox.data.pool import DecodePool, Task, open_pool
from cogvideox.data.report import shown
from cogvideox.data.survey import Failure
from cogvideox.errors import DataError
from cogvideox.log import get_logger

_log = get_logger(__name__)
Drawn = TypeVar("Drawn")


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's rows of a global batch.

    Args:
        video: uint8 [b, t, c, h, w], 0 to 255; the only field that moves to a device.
        captions: b texts.
        sample_ids: int64 [b].
        epochs: int64 [b]; a batch may straddle epochs. Randomness of a row is a function of (seed, its epoch,
            its sample id).
        positions: int64 [b]; place of each row in the endless stream of all epochs.
        counted: bool [b]; all True in training. False for rows of evaluation batches that only fill them up.
        paths: b files.
        next_position: stream position after this batch on all processes; where training resumes.
    """

    video: Tensor
    captions: tuple[str, ...]
    sample_ids: Tensor
    epochs: Tensor
    positions: Tensor
    counted: Tensor
    paths: tuple[str, ...]
    next_position: int

    @property
    def epoch(self) -> int:
        """Epoch of the first row, for display."""
        return int(self.epochs[0])

    def to(self, device: torch.device | str) -> Batch:
        """With the video on a device; pinned memory is copied without waiting."""
        return replace(self, video=self.video.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class DrawnBatch(Batch):
    """A batch whose randomness is being drawn, or is there already: see Drawing."""

    drawn: Future[Any]


class Drawing:
    """Draws the randomness of batches in a thread, as soon as they are read: 157 ms for a clip of 81x768x1360.

    One batch after the other, so that of many micro batches the first can be computed with while others are drawn.
    draw: a function of a batch that may run in another thread than the model.
    """

    def __init__(self, draw: Callable[[Batch], Any]) -> None:
        self._draw = draw
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")

    def begin(self, batch: Batch) -> DrawnBatch:
        """The same batch, with what `draw` will give for it."""
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return DrawnBatch(**values, drawn=self._thread.submit(self._draw, batch))

    def close(self) -> None:
        """End the thread once it has drawn for all batches that it was given. Waits for nothing."""
        self._thread.shutdown(wait=False)


def drawn(batch: Batch, draw: Callable[[Batch], Drawn]) -> Drawn:
    """What was drawn for a batch beside, waiting for it if need be; without that, what `draw` gives now."""
    return batch.drawn.result() if isinstance(batch, DrawnBatch) else draw(batch)


@dataclass(frozen=True)
class BatchPlan:
    """Stream positions of one process's rows, which of them count, and the stream position after all
    processes' rows.
    """

    positions: tuple[int, ...]
    counted: tuple[bool, ...]
    next_position: int


@dataclass(eq=False)
class _Row:
    """A row under way: the sample that is tried now, after so many substitutes."""

    position: int
    counted: bool
    into: Tensor  # uint8 [t, c, h, w]
    substitutes: int = 0
    epoch: int = 0
    index: int = 0
    ready: bool = False


@dataclass(frozen=True, eq=False)
class _UnderWay:
    plan: BatchPlan
    video: Tensor
    rows: tuple[_Row, ...]


class BatchReader:
    """Turns plans into batches, and keeps all workers busy with the batches that follow."""

    def __init__(
        self,
        dataset: VideoDataset,
        stream: SampleStream,
        *,
        seed: int,
        num_workers: int,
        pin_memory: bool,
        count_substitutes: bool,
    ) -> None:
        self.pool: DecodePool = open_pool(dataset.decoder, num_workers, dataset.clip_timeout_s)
        self.failures: dict[str, str] = {}
        self._num_unreadable = 0
        self.read_by: dict[str, int] = {}
        self._dataset = dataset
        self._stream = stream
        self._seed = seed
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._count_substitutes = count_substitutes

    def batches(self, plans: Iterator[BatchPlan]) -> Iterator[Batch]:
        """One batch for every plan; ends early when the pool is told to stop waiting.

        Raises:
            DataError: too many files have failed.
        """
        under_way: deque[_UnderWay] = deque()
        while True:
            while self._wants_more(under_way):
                plan = next(plans, None)
                if plan is None:
                    break
                under_way.append(self._begin(plan))
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

    def _begin(self, plan: BatchPlan) -> _UnderWay:
        shape = (len(plan.positions), *self._dataset.decoder.clip_shape)
        video = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        rows = tuple(map(_Row, plan.positions, plan.counted, video))
        for row in rows:
            self._try(row)
        return _UnderWay(plan, video, rows)

    def _try(self, row: _Row) -> None:
        """Ask for the row's sample, or the first one after it that has not failed."""
        while True:
            row.epoch, row.index = self._stream.at(row.position, row.substitutes)
            sample = self._dataset.samples[row.index]
            if sample.label not in self.failures:
                break
            row.substitutes += 1
            row.counted = row.counted and self._count_substitutes
        job = ReadJob(sample.media, sample.sample_id, self._seed, row.epoch, sample.window, sample.cuts)
        self.pool.submit(Task(row, job, row.into))

    def _settle(self, key: object, outcome: object) -> None:
        assert isinstance(key, _Row), key
        if isinstance(outcome, Failure):
            self._note_failure(self._dataset.samples[key.index].label, outcome)
            self._try(key)
            return
        assert isinstance(outcome, ReadDone), outcome
        media, asked = self._dataset.samples[key.index].media, self._dataset.decoder.reader.name
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
        if failure.too_short and self._dataset.decoder.spec.short_clips == "error":
            raise DataError(f"{reason}; data.short_clips=skip leaves such clips out, data.short_clips=pad takes them")
        self.failures[path] = failure.reason
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
        return Batch(
            video=batch.video,
            captions=tuple(sample.captions[0] for sample in samples),
            sample_ids=torch.tensor([sample.sample_id for sample in samples], dtype=torch.int64),
            epochs=torch.tensor([row.epoch for row in batch.rows], dtype=torch.int64),
            positions=torch.tensor([row.position for row in batch.rows], dtype=torch.int64),
            counted=torch.tensor([row.counted for row in batch.rows]),
            paths=tuple(sample.label for sample in samples),
            next_position=batch.plan.next_position,
        )
