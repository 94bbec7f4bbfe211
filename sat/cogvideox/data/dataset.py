"""The clips that training reads: samples, how they are decoded, and the report on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogvideox.data.clips import ClipDecoder, ProbeJob, SampleReader
from cogvideox.data.decode import ClipInfo, VideoReader, open_reader
from cogvideox.data.listing import held_out_count, list_samples
from cogvideox.data.media import Media
from cogvideox.data.order import OrderedSamples, SampleIds, hash_words
from cogvideox.data.pool import Task, open_pool
from cogvideox.data.sample import Sample
from cogvideox.data.survey import Failure, look_here
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket
from cogvideox.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class VideoDataset:
    """Samples in a fixed order, and how to read them.

    Args:
        samples: at least one, each with its bucket.
        reader: makes rows of them.
        buckets: all that samples have, at most 64.
        short_clips: what happens to clips that turn out to be too short, see ClipSpec.
        clip_timeout_s: seconds that a clip may take to decode.
        max_failed_share: share of the samples that may fail before the run stops.
        choices: for each sample, the numbers of the buckets that it may be drawn for in training, anew in each epoch;
            empty where each keeps its own.
        repeats: how often the samples of each source are seen per epoch; empty: once.
    """

    samples: Sequence[Sample]
    reader: SampleReader
    buckets: tuple[Bucket, ...]
    short_clips: str = "error"
    clip_timeout_s: float = 60.0
    max_failed_share: float = 0.05
    choices: tuple[tuple[int, ...], ...] = ()
    repeats: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def sample_ids(self) -> SampleIds:
        """int64 [number of samples]."""
        return np.array([sample.sample_id for sample in self.samples], dtype=np.int64)

    def ordered(self, for_evaluation: bool = False) -> OrderedSamples:
        """What their order is a function of. In evaluation each comes once, in its own bucket."""
        numbers = {bucket: number for number, bucket in enumerate(self.buckets)}
        buckets = choices = sources = None
        if len(self.buckets) > 1:
            buckets = np.array([numbers[sample.bucket] for sample in self.samples])  # type: ignore[index]
        if self.choices and not for_evaluation:
            choices = np.array([sum(1 << bucket for bucket in each) for each in self.choices], dtype=np.uint64)
        if self.repeats and not for_evaluation:
            sources = np.array([sample.source for sample in self.samples], dtype=np.int64)
        repeats = () if sources is None else self.repeats
        return OrderedSamples(self.sample_ids(), buckets, choices, sources, repeats, len(self.buckets))

    def fingerprint(self) -> str:
        """Hexadecimal hash of which samples there are; a data position is only meaningful for the same
        ones.
        """
        return hashlib.blake2b(np.sort(self.sample_ids()).tobytes(), digest_size=16).hexdigest()

    def first(self, count: int) -> VideoDataset:
        """At most `count` samples, chosen by their ids: the same ones whatever the order of folders."""
        return self.only(sorted(_by_rank(self)[:count]))

    def only(self, indices: Sequence[int]) -> VideoDataset:
        """Some of the samples, in this order."""
        choices = tuple(self.choices[index] for index in indices) if self.choices else ()
        return replace(self, samples=tuple(self.samples[index] for index in indices), choices=choices)


def split_held_out(dataset: VideoDataset, share: float) -> tuple[VideoDataset, VideoDataset]:
    """Divide into samples to train on and samples held out for evaluation.

    Chosen by a hash of the sample ids: independent of the seed and of the order of folders.

    Args:
        dataset: at least two samples.
        share: of the samples to hold out, rounded, at least one; between 0 and 1, both excluded.

    Raises:
        DataError: see listing.held_out_count.
    """
    count = held_out_count(len(dataset), share)
    ranked = _by_rank(dataset)
    return dataset.only(sorted(ranked[count:])), dataset.only(sorted(ranked[:count]))


def _by_rank(dataset: VideoDataset) -> list[int]:
    ranks = [hash_words("held out", sample_id) for sample_id in dataset.sample_ids().tolist()]
    return sorted(range(len(ranks)), key=ranks.__getitem__)


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
    decoder = ClipDecoder(spec, open_reader(reader) if isinstance(reader, str) else reader)
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
    return VideoDataset(tuple(samples), decoder, (spec.bucket,), spec.short_clips, clip_timeout_s, max_failed_share)


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
