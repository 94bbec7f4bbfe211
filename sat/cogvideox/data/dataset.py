"""The clips that training reads: samples, how they are decoded, and the report on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogvideox.data.clips import ClipDecoder, ProbeJob
from cogvideox.data.decode import ClipInfo, VideoReader, open_reader
from cogvideox.data.listing import held_out_count, list_samples
from cogvideox.data.manifest import Manifest
from cogvideox.data.media import Media
from cogvideox.data.order import SampleIds, hash_words
from cogvideox.data.pool import Task, open_pool
from cogvideox.data.report import SourceInfo
from cogvideox.data.sample import Sample
from cogvideox.data.sources.spec import SourceSpec
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
        sources: the entries that the samples are of, with how often each comes in an epoch.
    """

    samples: Sequence[Sample]
    decoder: ClipDecoder
    clip_timeout_s: float = 60.0
    max_failed_share: float = 0.05
    sources: tuple[SourceInfo, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def sample_ids(self) -> SampleIds:
        """int64 [number of samples]."""
        if isinstance(self.samples, Manifest):
            return self.samples.sample_ids()
        return np.array([sample.sample_id for sample in self.samples], dtype=np.int64)

    def fingerprint(self) -> str:
        """Hexadecimal hash of which samples there are; a data position is only meaningful for the same
        ones.
        """
        return hashlib.blake2b(np.sort(self.sample_ids()).tobytes(), digest_size=16).hexdigest()

    def first(self, count: int) -> VideoDataset:
        """At most `count` samples, chosen by their ids: the same ones whatever the order of folders."""
        return self._at(_held_out_places(self.sample_ids(), count))

    def _at(self, places: NDArray[np.int64]) -> VideoDataset:
        """With the samples at these places."""
        if isinstance(self.samples, Manifest):
            return replace(self, samples=self.samples.select(places))
        return replace(self, samples=tuple(self.samples[place] for place in places))


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
    files = _file_numbers(dataset)
    kinds, firsts = np.unique(files, return_index=True)
    chosen = kinds[_held_out_places(dataset.sample_ids()[firsts], held_out_count(len(kinds), share))]
    is_held_out = np.isin(files, chosen)
    return dataset._at(np.flatnonzero(~is_held_out)), dataset._at(np.flatnonzero(is_held_out))


def _file_numbers(dataset: VideoDataset) -> NDArray[np.int64]:
    """int64 [number of samples]: the same number for all samples of one video."""
    if isinstance(dataset.samples, Manifest):
        return dataset.samples.file_numbers()
    numbers: dict[Media, int] = {}
    return np.array([numbers.setdefault(sample.media, len(numbers)) for sample in dataset.samples], np.int64)


def _held_out_places(sample_ids: SampleIds, count: int) -> NDArray[np.int64]:
    """The places, ascending, of the samples that are held out before others."""
    ranks = np.array([hash_words("held out", sample_id) for sample_id in sample_ids.tolist()], np.int64)
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def build_dataset(
    entries: Sequence[SourceSpec | str | Path],
    spec: ClipSpec,
    *,
    reader: str | VideoReader = "pyav",
    missing_captions: str = "error",
    captions: str = "first",
    max_failed_share: float = 0.05,
    cache: str | None = None,
    clip_timeout_s: float = 60.0,
    num_workers: int = 2,
) -> VideoDataset:
    """List the samples, log the report, and refuse data that can't be trained on.

    Every process of a run may call this (the result is the same), or one may and send the result to the
    others: it is picklable.

    Args:
        entries, spec, missing_captions, captions, max_failed_share, cache: see listing.list_samples.
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
        entries,
        spec,
        decoder.reader,
        look=lambda medias: _look(medias, decoder, num_workers, clip_timeout_s),
        missing_captions=missing_captions,
        captions=captions,
        max_failed_share=max_failed_share,
        cache=cache,
    )
    report.check()
    _log.info("%s", report.text())
    return VideoDataset(samples, decoder, clip_timeout_s, max_failed_share, report.sources)


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
