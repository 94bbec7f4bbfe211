"""The clips that training reads: samples, how they are decoded, and the report on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogvideox.data.clips import ClipDecoder, ProbeJob
from cogvideox.data.decode import ClipInfo, VideoReader, open_reader
from cogvideox.data.listing import held_out_count, list_samples
from cogvideox.data.media import Media
from cogvideox.data.order import SampleIds, hash_words
from cogvideox.data.pool import Task, open_pool
from cogvideox.data.sample import Sample
from cogvideox.data.survey import Failure, look_here
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from cogvideox.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class VideoDataset:
    """Samples in a fixed order, and how to read them.

    Args:
        samples: at least one.
        decoder: makes clips of files.
        clip_timeout_s: seconds that a clip may take to decode.
        max_failed_share: share of the samples that may fail before the run stops.
    """

    samples: tuple[Sample, ...]
    decoder: ClipDecoder
    clip_timeout_s: float = 60.0
    max_failed_share: float = 0.05

    def __len__(self) -> int:
        return len(self.samples)

    def sample_ids(self) -> SampleIds:
        """int64 [number of samples]."""
        return np.array([sample.sample_id for sample in self.samples], dtype=np.int64)

    def fingerprint(self) -> str:
        """Hexadecimal hash of which samples there are; a data position is only meaningful for the same
        ones.
        """
        return hashlib.blake2b(np.sort(self.sample_ids()).tobytes(), digest_size=16).hexdigest()

    def first(self, count: int) -> VideoDataset:
        """At most `count` samples, chosen by their ids: the same ones whatever the order of folders."""
        chosen = {sample.sample_id for sample in sorted(self.samples, key=_held_out_rank)[:count]}
        return replace(self, samples=tuple(sample for sample in self.samples if sample.sample_id in chosen))


def split_held_out(dataset: VideoDataset, share: float) -> tuple[VideoDataset, VideoDataset]:
    """Divide into samples to train on and samples held out for evaluation.

    Chosen by a hash of the sample ids: independent of the seed and of the order of folders. All windows of a file go
    the same way.

    Args:
        dataset: of at least two files.
        share: of the files to hold out, rounded, at least one; between 0 and 1, both excluded.

    Raises:
        DataError: see listing.held_out_count.
    """
    files: dict[Media, Sample] = {}  # with the first sample of each
    for sample in dataset.samples:
        files.setdefault(sample.media, sample)
    count = held_out_count(len(files), share)
    chosen = {sample.media for sample in sorted(files.values(), key=_held_out_rank)[:count]}
    train = tuple(sample for sample in dataset.samples if sample.media not in chosen)
    held_out = tuple(sample for sample in dataset.samples if sample.media in chosen)
    return replace(dataset, samples=train), replace(dataset, samples=held_out)


def _held_out_rank(sample: Sample) -> int:
    return hash_words("held out", sample.sample_id)


def build_dataset(
    roots: Sequence[str | Path],
    spec: ClipSpec,
    *,
    reader: str | VideoReader = "pyav",
    missing_captions: str = "error",
    max_failed_share: float = 0.05,
    clip_timeout_s: float = 60.0,
    num_workers: int = 2,
) -> VideoDataset:
    """List the samples, log the report, and refuse data that can't be trained on.

    Every process of a run may call this (the result is the same), or one may and send the result to the
    others: it is picklable.

    Args:
        roots, spec, missing_captions, max_failed_share: see listing.list_samples.
        reader: "pyav", "decord" or a reader of your own.
        clip_timeout_s: time limit for a file.
        num_workers: processes that look at the files; 0 looks in this process.

    Raises:
        DataError: see listing.list_samples and SourceReport.check.
    """
    if not 0 <= max_failed_share <= 1:
        raise DataError(f"max_failed_share is {max_failed_share:g}; it has to lie between 0 and 1")
    decoder = ClipDecoder(spec, open_reader(reader, spec.scene_cuts) if isinstance(reader, str) else reader)
    samples, report = list_samples(
        roots,
        spec,
        decoder.reader,
        look=lambda medias: _look(medias, decoder, num_workers, clip_timeout_s),
        missing_captions=missing_captions,
        max_failed_share=max_failed_share,
    )
    report.check()
    _log.info("%s", report.text())
    return VideoDataset(tuple(samples), decoder, clip_timeout_s, max_failed_share)


def _look(
    medias: Sequence[Media], decoder: ClipDecoder, num_workers: int, timeout_s: float
) -> Iterator[tuple[Media, ClipInfo | Failure]]:
    # Starting a process takes a second or two; a handful of files is looked at sooner right here.
    if len(medias) <= 50:
        yield from look_here(medias, decoder.reader, timeout_s)
        return
    _log.info("looking at %d files", len(medias))
    pool = open_pool(decoder, num_workers, timeout_s)
    try:
        for media in medias:
            pool.submit(Task(media, ProbeJob(media)))
        for _ in medias:
            result = pool.next_result()
            assert result is not None, "the pool was closed while looking at files"
            key, outcome = result
            assert isinstance(key, Media) and isinstance(outcome, ClipInfo | Failure), result
            yield key, outcome
    finally:
        pool.close()
