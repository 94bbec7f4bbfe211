"""The clips that training reads: samples, how they are decoded, and the report on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogvideox.buckets import Buckets
from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.clips import ClipDecoder, ProbeJob, SampleReader
from cogvideox.data.decode import ClipInfo, VideoReader, open_reader
from cogvideox.data.held_out import first_places, held_out
from cogvideox.data.listing import find_samples
from cogvideox.data.manifest import Manifest
from cogvideox.data.media import Media
from cogvideox.data.order import OrderedSamples, SampleIds
from cogvideox.data.pool import Task, open_pool
from cogvideox.data.report import SourceInfo
from cogvideox.data.sample import Sample, all_captions
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.data.survey import Failure, look_here
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket
from cogvideox.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class VideoDataset:
    """Samples in a fixed order, and how to read them.

    Args:
        samples: at least one.
        reader: makes rows of them.
        plan: their buckets.
        short_clips: what happens to clips that turn out to be too short, see ClipSpec.
        captions: which of its captions a sample gets, see sample.choose_caption.
        clip_timeout_s: seconds that a clip may take to decode.
        max_failed_share: share of the samples that may fail before the run stops.
        sources: the entries that the samples are of, with how often each comes in an epoch.
        views: after how many epochs the buckets drawn for a sample come again; None: never.
    """

    samples: Sequence[Sample]
    reader: SampleReader
    plan: BucketPlan
    short_clips: str = "error"
    captions: str = "first"
    clip_timeout_s: float = 60.0
    max_failed_share: float = 0.05
    sources: tuple[SourceInfo, ...] = ()
    views: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def sample_ids(self) -> SampleIds:
        """int64 [number of samples]."""
        if isinstance(self.samples, Manifest):
            return self.samples.sample_ids()
        return np.array([sample.sample_id for sample in self.samples], dtype=np.int64)

    def captions_used(self) -> list[str]:
        """Every caption that the samples can be trained with, each once, in order."""
        if isinstance(self.samples, Manifest):
            return self.samples.captions()
        return all_captions(self.samples)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """All that samples may have."""
        return self.plan.shapes

    def ordered(self, for_evaluation: bool = False) -> OrderedSamples:
        """What their order is a function of. In evaluation each comes once, in its own bucket."""
        choices, sources = (None, None) if for_evaluation else (self.plan.choices, self._source_numbers())
        repeats = () if sources is None else tuple(source.repeats for source in self.sources)
        ids, numbers = self.sample_ids(), self.plan.numbers
        return OrderedSamples(ids, numbers, choices, sources, repeats, len(self.buckets), self.views)

    def _source_numbers(self) -> NDArray[np.int64] | None:
        """int64 [n], the entry of each sample; None where all come once."""
        if all(source.repeats == 1 for source in self.sources):
            return None
        if isinstance(self.samples, Manifest):
            return np.asarray(self.samples.column("source"), dtype=np.int64)
        return np.array([sample.source for sample in self.samples], dtype=np.int64)

    def fingerprint(self) -> str:
        """Hexadecimal hash of which samples there are; a data position is only meaningful for the same
        ones.
        """
        return hashlib.blake2b(np.sort(self.sample_ids()).tobytes(), digest_size=16).hexdigest()

    def first(self, count: int) -> VideoDataset:
        """At most `count` samples, chosen by their ids: the same ones whatever the order of folders."""
        return self.only(first_places(self.sample_ids(), count))

    def only(self, places: NDArray[np.int64]) -> VideoDataset:
        """With the samples at these places."""
        return replace(self, samples=select(self.samples, places), plan=self.plan.at(places))


def select(samples: Sequence[Sample], places: NDArray[np.int64]) -> Sequence[Sample]:
    """The samples at these places."""
    return samples.select(places) if isinstance(samples, Manifest) else tuple(samples[place] for place in places)


def split_held_out(dataset: VideoDataset, share: float) -> tuple[VideoDataset, VideoDataset]:
    """Divide into samples to train on and samples held out for evaluation.

    Args:
        share: of the files to hold out, see held_out.held_out.

    Raises:
        DataError: see listing.held_out_count.
    """
    is_held = held_out(dataset.samples, dataset.sample_ids(), share)
    return dataset.only(np.flatnonzero(~is_held)), dataset.only(np.flatnonzero(is_held))


def build_dataset(
    entries: Sequence[SourceSpec | str | Path],
    spec: ClipSpec,
    *,
    reader: str | VideoReader = "pyav",
    missing_captions: str = "error",
    captions: str = "first",
    max_failed_share: float = 0.05,
    cache: str | None = None,
    buckets: Buckets | None = None,
    clip_timeout_s: float = 60.0,
    num_workers: int = 2,
    for_image_to_video: bool = False,
) -> VideoDataset:
    """List the samples, log the report, and refuse data that can't be trained on.

    Every process of a run may call this (the result is the same), or one may and send the result to the
    others: it is picklable.

    Args:
        entries, spec, missing_captions, captions, max_failed_share, cache, buckets: see listing.find_samples.
        reader: "pyav", "decord" or a reader of your own.
        clip_timeout_s: time limit for a file.
        num_workers: processes that look at the files; 0 looks in this process.
        for_image_to_video: read the first images that samples have of their own.

    Raises:
        DataError: see listing.find_samples and SourceReport.check.
    """
    if not 0 <= max_failed_share <= 1:
        raise DataError(f"max_failed_share is {max_failed_share:g}; it has to lie between 0 and 1")
    decoder = ClipDecoder(spec, open_reader(reader, spec.scene_cuts) if isinstance(reader, str) else reader)
    samples, report, plan = find_samples(
        entries,
        spec,
        decoder.reader,
        look=lambda medias: _look(medias, decoder, num_workers, clip_timeout_s),
        missing_captions=missing_captions,
        captions=captions,
        max_failed_share=max_failed_share,
        cache=cache,
        buckets=buckets,
    ).listed
    report.check()
    if for_image_to_video and samples.has_images():
        decoder = replace(decoder, with_images=True)
    _log.info("%s", report.text())
    return VideoDataset(
        samples,
        decoder,
        plan,
        short_clips=spec.short_clips,
        captions=captions,
        clip_timeout_s=clip_timeout_s,
        max_failed_share=max_failed_share,
        sources=report.sources,
    )


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
