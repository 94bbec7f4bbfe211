"""From folders to the samples that can be trained on, and the report on all of them. No torch here."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cogvideox.buckets import Buckets
from cogvideox.data import scenes
from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.header_cache import HeaderCache, cache_file
from cogvideox.data.manifest import Manifest
from cogvideox.data.media import Media
from cogvideox.data.order import hash_words
from cogvideox.data.report import BucketInfo, Problem, SourceReport, Spread
from cogvideox.data.sample import Sample
from cogvideox.data.sources.read import Listing, count_by_source, read_sources, settle_repeats
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.data.survey import Failure, Survey, look_here
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket
from cogvideox.log import get_logger

_log = get_logger(__name__)

Look = Callable[[Sequence[Media]], Iterable[tuple[Media, ClipInfo | Failure]]]
CountTokens = Callable[[list[str]], Sequence[int]]
# Below and above these a clip is named. A square clip keeps 67 % at 480 x 720, one of 9:16 keeps 38 %.
KEPT_SHARE_TO_NAME = 0.6
ENLARGEMENT_TO_NAME = 2.0
_REMEMBER_EVERY_S = 20.0
_AT_A_TIME = 10_000
Outcome = Survey | Failure | None  # None: not looked at


class Listed(NamedTuple):
    """What can be trained on, the report on everything that was found, and the buckets of the samples."""

    samples: Manifest
    report: SourceReport
    plan: BucketPlan


class Found(NamedTuple):
    """Everything that the entries name, what became of each file, and what can be trained on.

    outcomes: of each sample of `samples`: what its file will give, why it can't be used, or None where nobody looked.
    """

    samples: Manifest
    outcomes: list[Outcome]
    listed: Listed


_MISSING = Failure("there is no such file")


def find_samples(
    entries: Sequence[SourceSpec | str | Path],
    spec: ClipSpec,
    reader: VideoReader,
    *,
    look: Look | None = None,
    missing_captions: str = "error",
    captions: str = "first",
    max_failed_share: float = 0.05,
    cache: str | None = None,
    buckets: Buckets | None = None,
) -> Found:
    """Read the entries, and look at every file that isn't remembered from an earlier run.

    Args:
        entries: paths, or all that an entry of args.train_data says; images count where a shape has one frame.
        spec: decides on what is long enough.
        reader: for videos.
        look: gives what is known of each file, in any order, or leaves some out; None looks at all of them here.
        missing_captions: "error" or "empty"; captions: "first" or "random".
        max_failed_share: for the report's verdict.
        cache: folder in which what was seen is remembered; None: the user's own.
        buckets: the shapes that samples may have; None for that of `spec`.

    Returns:
        Everything that was found; `listed` has the usable samples in order, the report, and their buckets. Samples that
        were not looked at are not among them. Problems of single items don't raise: see SourceReport.check.

    Raises:
        DataError: for the entries themselves, see read.read_sources.
    """
    shapes = (spec.bucket,) if buckets is None else buckets.shapes
    takes_images = any(shape.frames == 1 for shape in shapes)
    listing = read_sources(entries, missing_captions, captions=captions, with_images=takes_images)
    samples = listing.samples
    name = f"{reader.name}, cuts {scenes.VERSION}" if spec.scene_cuts == "avoid" else reader.name
    outcomes, num_images = _look_at(
        samples, spec, buckets, HeaderCache(cache_file(cache), name), look or _all_here(reader)
    )
    problems = [*listing.problems, *_judged(samples, outcomes, spec)]
    good = [each for each in outcomes if isinstance(each, Survey) and each.is_usable]
    usable, plan = _expanded(samples, outcomes, spec)
    report = SourceReport(
        roots=tuple(source.path for source in listing.sources),
        num_videos=listing.num_videos,
        num_samples=len(good),
        num_windows=len(usable),
        buckets=_bucket_infos(good),
        problems=tuple(problems),
        source_fps=Spread.of([survey.source_fps for survey in good if survey.source_fps]),
        effective_fps=Spread.of([survey.effective_fps for survey in good if survey.effective_fps]),
        max_failed_share=max_failed_share,
        noun="videos" if not num_images else "images" if num_images == len(samples) else "videos and images",
        num_not_looked_at=outcomes.count(None),
        kept_share=Spread.of([survey.kept_share for survey in good]),
        enlargement=Spread.of([survey.enlargement for survey in good]),
        video_size=spec.video_size,
        too_short_remedy=_too_short_remedy(
            [each for each in outcomes if isinstance(each, Survey) and each.too_short], spec
        ),
        missing_remedy=_missing_remedy(listing, samples, outcomes),
        drawn=plan.drawn_text(),
        sources=settle_repeats(
            listing.sources, entries, count_by_source(usable, len(entries)), is_whole=None not in outcomes
        ),
    )
    return Found(samples, outcomes, Listed(usable, report, plan))


def _bucket_infos(good: Sequence[Survey]) -> tuple[BucketInfo, ...]:
    """By bucket, in order; each file in its own one."""
    members: dict[Bucket, list[Survey]] = {}
    for survey in good:
        members.setdefault(survey.buckets[0], []).append(survey)
    return tuple(
        BucketInfo(
            bucket,
            sum(each.num_windows for each in some),
            len(some),
            Spread.over([each.kept_share for each in some]),
            Spread.over([each.enlargement for each in some]),
            sum(each.num_padded for each in some),
        )
        for bucket, some in sorted(members.items())
    )


def _expanded(samples: Manifest, outcomes: Sequence[Outcome], spec: ClipSpec) -> tuple[Manifest, BucketPlan]:
    """A sample for each window of the usable clips, and their buckets. The first window keeps its clip's id."""
    surveys = [each if isinstance(each, Survey) and each.is_usable else None for each in outcomes]
    counts = np.array([0 if each is None else each.num_windows for each in surveys], np.int64)
    places = np.repeat(np.arange(len(surveys)), counts)
    good: list[Survey] = [surveys[place] for place in places]  # type: ignore[misc]
    plan = BucketPlan.of_choices([each.buckets for each in good])
    if spec.windows == "one" and spec.scene_cuts == "ignore":
        return samples.select(places), plan
    windows = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = samples.sample_ids()[places]
    ids[windows > 0] = [
        hash_words("window", sample_id, window)
        for sample_id, window in zip(ids[windows > 0].tolist(), windows[windows > 0].tolist(), strict=True)
    ]
    cuts = pa.array([each.cuts for each in good], pa.list_(pa.int64())) if spec.scene_cuts == "avoid" else None
    return samples.select(places, sample_ids=ids, windows=windows.astype(np.int32), cuts=cuts), plan


def _look_at(
    samples: Manifest, spec: ClipSpec, buckets: Buckets | None, cache: HeaderCache, look: Look
) -> tuple[list[Outcome], int]:
    """What is remembered or found of each sample's file, and how many are images."""
    outcomes: list[Outcome] = [None] * len(samples)
    unknown: dict[Media, list[int]] = {}
    num_images = 0
    for first in range(0, len(samples), _AT_A_TIME):
        medias = samples.medias(first, min(first + _AT_A_TIME, len(samples)))
        known = cache.get(medias)
        for place, media in enumerate(medias, first):
            num_images += media.is_image
            if media not in known:
                unknown.setdefault(media, []).append(place)
            elif (info := known[media]) is None:
                outcomes[place] = _MISSING
            else:
                outcomes[place] = _survey(info, spec, buckets)
    # In an order of their own, so that the first of them, where time doesn't suffice for all, are of all sorts.
    found: dict[Media, ClipInfo] = {}
    since, done = time.monotonic(), 0
    try:
        for media, outcome in look(sorted(unknown, key=_shuffled)):
            done += 1
            for place in unknown[media]:
                outcomes[place] = _survey(outcome, spec, buckets) if isinstance(outcome, ClipInfo) else outcome
            if isinstance(outcome, ClipInfo):
                found[media] = outcome
            if time.monotonic() - since > _REMEMBER_EVERY_S:
                _log.info("looked at %d of %d files", done, len(unknown))
                cache.put(found)
                found, since = {}, time.monotonic()
    finally:  # also when it is interrupted
        if found:
            cache.put(found)
    return outcomes, num_images


@lru_cache(maxsize=4096)
def _survey(info: ClipInfo, spec: ClipSpec, buckets: Buckets | None) -> Survey:
    """The same object for the same header: the cache gives one for all clips of which the same is known."""
    return Survey.of(info, spec, buckets)


def _judged(samples: Manifest, outcomes: Sequence[Outcome], spec: ClipSpec) -> Iterator[Problem]:
    """What there is to say about the samples that were looked at, in order."""
    for first in range(0, len(samples), _AT_A_TIME):
        some = outcomes[first : first + _AT_A_TIME]
        if not any(isinstance(each, Failure) or (each is not None and _findings(each, spec)) for each in some):
            continue
        for media, outcome in zip(samples.medias(first, first + len(some)), some, strict=True):
            if outcome is _MISSING:
                yield Problem("missing file", media.label, "there is no such file", "left out")
            elif isinstance(outcome, Failure):
                yield _unreadable(media, outcome)
            elif outcome is not None:
                for kind, reason, effect, badness in _findings(outcome, spec):
                    yield Problem(kind, media.label, reason, effect, badness)


def _missing_remedy(listing: Listing, samples: Manifest, outcomes: Sequence[Outcome]) -> str:
    """Where the missing files of each entry may be."""
    missing = np.flatnonzero([each is _MISSING for each in outcomes])
    if not len(missing):
        return ""
    entries = sorted(set(samples.select(missing).column("source").to_pylist()))
    return "; ".join(dict.fromkeys(text for entry in entries if (text := listing.where_missing[entry])))


def _shuffled(media: Media) -> int:
    return zlib.crc32(os.fsencode(media.label))


def _all_here(reader: VideoReader) -> Look:
    return lambda medias: look_here(medias, reader, timeout_s=60.0)


def _unreadable(media: Media, outcome: Failure) -> Problem:
    kind = "unreadable image" if media.is_image else "unreadable video"
    return Problem(kind, media.label, outcome.reason.removeprefix(f"{media.label}: "), effect="left out")


@lru_cache(maxsize=4096)
def _findings(survey: Survey, spec: ClipSpec) -> tuple[tuple[str, str, str, float], ...]:
    """(kind, reason, effect, badness) of each problem."""
    if survey.too_short is not None:
        effect = "error" if spec.short_clips == "error" else "left out"
        return (("too short", survey.too_short, effect, 0.0),)
    if survey.too_small is not None:
        return (("too small", survey.too_small, "left out", survey.enlargement),)
    found: list[tuple[str, str, str, float]] = []

    def keep(kind: str, reason: str, badness: float = 0.0) -> None:
        found.append((kind, reason, "kept", badness))

    bucket = survey.buckets[0]
    shape = f"{survey.height} x {survey.width} pixels (height x width)"
    if survey.kept_share < KEPT_SHARE_TO_NAME:
        is_taller = survey.height * bucket.width > survey.width * bucket.height
        sides = "above and below" if is_taller else "at its sides"
        keep("cropped", f"{shape}: {1 - survey.kept_share:.0%} is cut off {sides}", -survey.kept_share)
    if survey.enlargement >= ENLARGEMENT_TO_NAME:
        keep("enlarged", f"{shape}: enlarged {survey.enlargement:.1f} times", survey.enlargement)
    if survey.num_padded:
        again = f"it is played again for {survey.num_padded} frames"
        last = f"its last frame is repeated {survey.num_padded} times"
        keep("padded", again if spec.short_clips == "loop" else last, survey.num_padded)
    if survey.num_repeated:
        repeats = f"{survey.num_repeated} of {bucket.frames} frames repeat the one before"
        keep("slow source", f"{survey.source_fps:.2f} fps: {repeats}", survey.num_repeated)
    return tuple(found)


def _too_short_remedy(short: Sequence[Survey], spec: ClipSpec) -> str:
    """What takes these clips, with numbers; "" without any."""
    if not short:
        return ""
    if spec.short_clips == "error":
        ways = ["data.short_clips=skip leaves them out, data.short_clips=pad repeats their last frame"]
    else:
        ways = ["they are left out; data.short_clips=pad repeats their last frame instead"]
    frames = (min(survey.frames_available for survey in short) - 1) // 8 * 8 + 1  # 8 j + 1 suits every model
    if frames >= 9:
        ways.append(f"data.max_num_frames={frames} takes all of them as they are")
    if spec.frame_stride is not None or spec.scene_cuts == "avoid":
        return "; ".join(ways)
    # As in timing.frame_indices, a frame is shown for a while after it began.
    lasting = min(survey.duration_s + (0.5 / survey.source_fps if survey.source_fps else 0.0) for survey in short)
    fps = math.ceil((spec.max_num_frames - 1) / lasting) if lasting > 0 else math.inf
    if fps <= min(survey.source_fps for survey in short):
        ways.append(f"data.fps={fps} does so too, with motion {fps / spec.fps:.2g} times as slow at {spec.fps:g} fps")
    return "; ".join(ways)


def long_captions(samples: Sequence[Sample], count: CountTokens, limit: int) -> list[Problem]:
    """Captions that the text encoder will cut.

    Args:
        samples: whose captions.
        count: gives the tokens of each caption, its end token included.
        limit: what the text encoder takes.
    """
    found = [(sample.label, caption) for sample in samples for caption in sample.captions]
    tokens = count([caption for _, caption in found])
    return [
        Problem("long caption", label, f"{number} tokens, the text encoder reads {limit}", "kept", number)
        for (label, _), number in zip(found, tokens, strict=True)
        if number > limit
    ]


def held_out_count(num_samples: int, share: float) -> int:
    """How many samples `share` holds out: rounded, at least one.

    Raises:
        DataError: for a share that doesn't lie between 0 and 1, or when none would be left to train on.
    """
    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share:g}; it has to lie between 0 and 1")
    count = max(1, round(share * num_samples))
    if count >= num_samples:
        raise DataError(
            f"holding out {share:g} of {num_samples} samples leaves none to train on; give more clips or valid_data"
        )
    return count


def trained_and_held_out(train: Sequence[Sample], held_out: Sequence[Sample]) -> list[Problem]:
    """Held-out samples whose very file, links included, is trained on as well."""
    identities = [_file_identity(sample.media) for sample in held_out]
    twins: dict[tuple[int, int, int], str | None] = dict.fromkeys(each for each in identities if each is not None)
    for sample in train:
        identity = _file_identity(sample.media)
        if identity in twins:
            twins[identity] = sample.label
    problems = []
    for sample, identity in zip(held_out, identities, strict=True):
        label = None if identity is None else twins[identity]
        if label is not None:
            where = "" if label == sample.label else f", as {label}"
            problems.append(Problem("held out and trained on", sample.label, f"in train_data too{where}", "kept"))
    return problems


def _file_identity(media: Media) -> tuple[int, int, int] | None:
    try:
        status = os.stat(media.path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, media.offset
