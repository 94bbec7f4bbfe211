"""Loaders: an endless one for training, a repeatable one for evaluation.

What they hold is planned beforehand (plans, order): a function of the seed and of how many samples a global batch
has, not of the number of processes or of how it is split into micro batches.

Letters: b batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from cogvideox import stopping
from cogvideox.data.batches import BatchReader
from cogvideox.data.dataset import VideoDataset
from cogvideox.data.order import SampleOrder
from cogvideox.data.plans import (
    BatchPlan,
    BatchShare,
    StreamPosition,
    count_batches,
    evaluation_plans,
    training_plans,
)
from cogvideox.data.rows import AnyBatch, Drawing, Rows
from cogvideox.errors import DataError, UserError


class VideoLoader:
    """An endless iterator over training batches of one process. Close it (a with-statement does) to end its
    workers.
    """

    def __init__(
        self,
        reader: BatchReader,
        plans: Iterator[BatchPlan],
        start: StreamPosition,
        prefetch: bool,
        draw: Callable[[Rows], Any] | None = None,
    ) -> None:
        self.position = start
        self._reader = reader
        self._source = _Source(reader, plans, prefetch, draw)
        self._closed = False

    @property
    def failures(self) -> dict[str, str]:
        """Files of this process that failed to decode so far, and why."""
        return dict(self._reader.failures)

    @property
    def read_by(self) -> dict[str, int]:
        """How many clips which reader has read: PyAV steps in for decord."""
        return dict(self._reader.read_by)

    @property
    def num_online(self) -> int:
        """How many rows of this process were decoded because a cache did not hold all of their batch."""
        return self._reader.num_online

    def __iter__(self) -> VideoLoader:
        return self

    def __next__(self) -> AnyBatch:
        """The next micro batch; `position` then counts it.

        Raises:
            DataError: too many files have failed to decode.
            Stopped: the program was asked to stop.
        """
        assert not self._closed, "the loader is closed"
        batch = next(self._source, None)
        assert batch is not None, "training batches never end"
        self.position = batch.rows.after
        return batch

    def close(self) -> None:
        """End the workers. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._source.close()

    def __enter__(self) -> VideoLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Source:
    """Batches of a reader, read ahead if wanted, with their randomness being drawn. Owns the reader's pool."""

    def __init__(
        self,
        reader: BatchReader,
        plans: Iterator[BatchPlan],
        prefetch: bool,
        draw: Callable[[Rows], Any] | None,
    ) -> None:
        self._pool = reader.pool
        self._drawing = None if draw is None else Drawing(draw)
        batches = reader.batches(plans)
        self._batches = batches if self._drawing is None else map(self._drawing.begin, batches)
        self._ahead = _ReadAhead(self._batches) if prefetch else None

    def __iter__(self) -> Iterator[AnyBatch]:
        return self

    def __next__(self) -> AnyBatch:
        return next(self._batches if self._ahead is None else self._ahead)

    def close(self) -> None:
        self._pool.stop_waiting()
        if self._ahead is not None:
            self._ahead.stop()
        self._pool.close()
        if self._drawing is not None:
            self._drawing.close()


class _ReadAhead:
    """Runs the reader in a thread, one finished batch ahead, so that workers get new jobs while the device
    computes.
    """

    def __init__(self, batches: Iterator[AnyBatch]) -> None:
        self._batches = batches
        self._queue: queue.Queue[AnyBatch | None] = queue.Queue(maxsize=1)
        self._error: UserError | None = None
        self._is_through = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for batch in self._batches:
                self._put(batch)
                if self._stopped.is_set():
                    return
            self._is_through = True
        except UserError as error:
            self._error = error
        finally:
            # Whatever ended the thread, nobody may wait for it for ever.
            self._put(None)

    def _put(self, item: AnyBatch | None) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[AnyBatch]:
        return self

    def __next__(self) -> AnyBatch:
        """The first batch may take minutes, and a run that is asked to stop does not wait for it."""
        while True:
            stopping.check()
            try:
                batch = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            if batch is not None:
                return batch
            self._put(None)  # for whoever asks again
            if self._error is not None:
                raise self._error
            if self._is_through:
                raise StopIteration
            raise RuntimeError("the reading thread has ended; its traceback is above")

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def build_loader(
    dataset: VideoDataset,
    micro_batch_size: int | Sequence[int],
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start: StreamPosition | None = None,
    accumulation: int = 1,
    num_workers: int = 2,
    pin_memory: bool = False,
    draw: Callable[[Rows], Any] | None = None,
) -> VideoLoader:
    """Training batches of one process, see plans.training_plans.

    Args:
        dataset: what to read.
        micro_batch_size: b; one for all buckets, or one for each of the data set's.
        rank, world_size: which process this is, and of how many.
        seed: of order and augmentation; the same on all processes.
        start: a loader's `position`, to go on from there; None begins.
        accumulation: micro batches of a step, which are all of one bucket.
        num_workers: decoding processes of this process; 0 decodes on demand without reading ahead.
        pin_memory: for batches that go to a CUDA device.
        draw: makes the randomness of a batch's rows, in a thread beside (see rows.Drawing); None: nobody does.

    Raises:
        DataError: for a batch size below 1, or more processes than samples.
    """
    sizes = [micro_batch_size] * len(dataset.buckets) if isinstance(micro_batch_size, int) else list(micro_batch_size)
    assert len(sizes) == len(dataset.buckets) and accumulation >= 1, (sizes, accumulation)
    _check_sizes(min(sizes), rank, world_size)
    if world_size > len(dataset):
        raise DataError(
            f"{world_size} processes but {len(dataset)} samples; use at most {len(dataset)} processes, or more clips"
        )
    order = SampleOrder(dataset.ordered(), seed)
    reader = BatchReader(
        dataset, order, seed=seed, num_workers=num_workers, pin_memory=pin_memory, count_substitutes=True
    )
    start = StreamPosition() if start is None else start
    names = [str(bucket) for bucket in dataset.buckets]
    plans = training_plans(order, names, sizes, BatchShare(rank, world_size, accumulation), seed, start)
    return VideoLoader(reader, plans, start, prefetch=num_workers > 0, draw=draw)


class EvaluationLoader:
    """Passes over a data set in a fixed order, see plans.evaluation_plans: the sum over counted rows depends on nothing
    but the data. A file that fails is not replaced for good: its row is filled by another sample and not counted.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int,
        pin_memory: bool = False,
        draw: Callable[[Rows], Any] | None = None,
    ) -> None:
        self._dataset = dataset
        self._order = SampleOrder(dataset.ordered(for_evaluation=True), seed=0, shuffle=False)
        self._size = micro_batch_size
        self._share = BatchShare(rank, world_size)
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._draw = draw

    def __len__(self) -> int:
        """Batches of each process in a pass."""
        return count_batches(self._order, self._size, self._share.world_size)

    def __iter__(self) -> Iterator[AnyBatch]:
        """One pass. Workers start with it and end with it.

        Raises:
            DataError: too many files have failed to decode.
        """
        reader = BatchReader(
            self._dataset,
            self._order,
            seed=0,
            num_workers=min(self._num_workers, len(self)),
            pin_memory=self._pin_memory,
            count_substitutes=False,
        )
        plans = evaluation_plans(self._order, self._size, self._share)
        source = _Source(reader, plans, prefetch=self._num_workers > 0, draw=self._draw)
        try:
            yield from source
        finally:
            source.close()


def build_evaluation_loader(
    dataset: VideoDataset,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 2,
    pin_memory: bool = False,
    draw: Callable[[Rows], Any] | None = None,
) -> EvaluationLoader:
    """Evaluation batches of one process; iterate as often as needed.

    The mean over the data set is sum(value * counted) / sum(counted) over the batches of all processes.

    Raises:
        DataError: for a batch size below 1.
    """
    _check_sizes(micro_batch_size, rank, world_size)
    return EvaluationLoader(dataset, micro_batch_size, rank, world_size, num_workers, pin_memory, draw)


def _check_sizes(micro_batch_size: int, rank: int, world_size: int) -> None:
    if micro_batch_size < 1:
        raise DataError(f"the micro batch size is {micro_batch_size}; it has to be at least 1")
    assert 0 <= rank < world_size, (rank, world_size)
