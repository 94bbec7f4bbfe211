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
from numpy.typing import NDArray

from cogvideox.buckets import Buckets
from cogvideox.data import scenes
from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.header_cache import HeaderCache, cache_file
from cogvideox.data.manifest import Manifest
from cogvideox.data.media import Media
from cogvideox.data.order import hash_each
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


_UNKNOWN = object()
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
    outcomes = _look_at(samples, spec, buckets, HeaderCache(cache_file(cache), name), look or _all_here(reader))
    kinds, which = _distinct(outcomes)
    problems = [*listing.problems, *_judged(samples, kinds, which, spec)]
    surveys = [each if isinstance(each, Survey) and each.is_usable else None for each in kinds]
    usable, plan = _expanded(samples, surveys, which, spec)
    of_kind = np.bincount(which, minlength=len(kinds)).tolist()
    good = [(each, count) for each, count in zip(surveys, of_kind, strict=True) if each is not None]
    num_images, num_unknown = samples.num_images(), outcomes.count(None)
    report = SourceReport(
        roots=tuple(source.path for source in listing.sources),
        num_videos=listing.num_videos,
        num_samples=sum(count for _, count in good),
        num_windows=len(usable),
        buckets=_bucket_infos(good),
        problems=tuple(problems),
        source_fps=_spread(good, "source_fps"),
        effective_fps=_spread(good, "effective_fps"),
        max_failed_share=max_failed_share,
        noun="videos" if not num_images else "images" if num_images == len(samples) else "videos and images",
        num_not_looked_at=num_unknown,
        kept_share=_spread(good, "kept_share"),
        enlargement=_spread(good, "enlargement"),
        video_size=spec.video_size,
        too_short_remedy=_too_short_remedy(
            [each for each in kinds if isinstance(each, Survey) and each.too_short], spec
        ),
        missing_remedy=_missing_remedy(listing, samples, kinds, which),
        drawn=plan.drawn_text(),
        sources=settle_repeats(
            listing.sources, entries, count_by_source(usable, len(entries)), is_whole=not num_unknown
        ),
    )
    return Found(samples, outcomes, Listed(usable, report, plan))


def _distinct(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], NDArray[np.int64]]:
    """Each object once, and which of them each sample has: a million clips have a few hundred. What follows is then
    calculated for these, and columns take it from there."""
    numbers: dict[int, int] = {}
    which = np.fromiter((numbers.setdefault(id(each), len(numbers)) for each in outcomes), np.int64, len(outcomes))
    return [outcomes[place] for place in np.unique(which, return_index=True)[1]], which


def _spread(good: Sequence[tuple[Survey, int]], name: str) -> Spread | None:
    """Of a value of the usable files, where it is known. good: with how many files each stands for."""
    known = [(value, count) for survey, count in good if (value := getattr(survey, name))]
    return Spread.of([value for value, _ in known], [count for _, count in known])


def _bucket_infos(good: Sequence[tuple[Survey, int]]) -> tuple[BucketInfo, ...]:
    """By bucket, in order; each file in its own one."""
    members: dict[Bucket, list[tuple[Survey, int]]] = {}
    for survey, count in good:
        members.setdefault(survey.buckets[0], []).append((survey, count))
    infos = []
    for bucket, some in sorted(members.items()):
        surveys, counts = zip(*some, strict=True)
        infos.append(
            BucketInfo(
                bucket,
                sum(each.num_windows * count for each, count in some),
                sum(counts),
                Spread.over([each.kept_share for each in surveys], counts),
                Spread.over([each.enlargement for each in surveys], counts),
                sum(each.num_padded * count for each, count in some),
            )
        )
    return tuple(infos)


def _expanded(
    samples: Manifest, surveys: Sequence[Survey | None], which: NDArray[np.int64], spec: ClipSpec
) -> tuple[Manifest, BucketPlan]:
    """A sample for each window of the usable clips, and their buckets. The first window keeps its clip's id.

    surveys: None for what can't be used; which: int64 [n], the one of each sample.
    """
    counts = np.array([0 if each is None else each.num_windows for each in surveys], np.int64)[which]
    places = np.repeat(np.arange(len(which)), counts)
    own = which[places]
    plan = BucketPlan.of_choices([() if each is None else each.buckets for each in surveys], own)
    if spec.windows == "one" and spec.scene_cuts == "ignore":
        return samples.select(places), plan
    windows = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = samples.sample_ids()[places]
    later = zip(ids[windows > 0].tolist(), windows[windows > 0].tolist(), strict=True)
    ids[windows > 0] = hash_each("window", (f"{sample_id}\0{window}" for sample_id, window in later))
    cuts = None
    if spec.scene_cuts == "avoid":
        cuts = pa.array([each and each.cuts for each in surveys], pa.list_(pa.int64())).take(pa.array(own))
    return samples.select(places, sample_ids=ids, windows=windows.astype(np.int32), cuts=cuts), plan


def _look_at(
    samples: Manifest, spec: ClipSpec, buckets: Buckets | None, cache: HeaderCache, look: Look
) -> list[Outcome]:
    """What is remembered or found of each sample's file."""

    @lru_cache(maxsize=4096)
    def survey(info: ClipInfo) -> Survey:
        """The same object for the same header: the cache gives one for all clips of which the same is known."""
        return Survey.of(info, spec, buckets)

    outcomes: list[Outcome] = [None] * len(samples)
    unknown: dict[Media, list[int]] = {}
    for first in range(0, len(samples), _AT_A_TIME):
        medias = samples.medias(first, min(first + _AT_A_TIME, len(samples)))
        known = cache.get(medias)
        for place, media in enumerate(medias, first):
            found_out = known.get(media, _UNKNOWN)
            if isinstance(found_out, ClipInfo):
                outcomes[place] = survey(found_out)
            elif found_out is None:
                outcomes[place] = _MISSING
            else:
                unknown.setdefault(media, []).append(place)
    # In an order of their own, so that the first of them, where time doesn't suffice for all, are of all sorts.
    found: dict[Media, ClipInfo] = {}
    since, done = time.monotonic(), 0
    try:
        for media, outcome in look(sorted(unknown, key=_shuffled)):
            done += 1
            for place in unknown[media]:
                outcomes[place] = survey(outcome) if isinstance(outcome, ClipInfo) else outcome
            if isinstance(outcome, ClipInfo):
                found[media] = outcome
            if time.monotonic() - since > _REMEMBER_EVERY_S:
                _log.info("looked at %d of %d files", done, len(unknown))
                cache.put(found)
                found, since = {}, time.monotonic()
    finally:  # also when it is interrupted
        if found:
            cache.put(found)
    return outcomes


def _judged(samples: Manifest, kinds: Sequence[Outcome], which: NDArray[np.int64], spec: ClipSpec) -> Iterator[Problem]:
    """What there is to say about the samples that were looked at, in order."""
    findings = [_findings(each, spec) if isinstance(each, Survey) else () for each in kinds]
    speaks = [isinstance(each, Failure) or bool(some) for each, some in zip(kinds, findings, strict=True)]
    places = np.flatnonzero(np.array(speaks, bool)[which])
    for media, number in zip(samples.select(places).each_media(), which[places].tolist(), strict=True):
        outcome = kinds[number]
        if outcome is _MISSING:
            yield Problem("missing file", media.label, "there is no such file", "left out")
        elif isinstance(outcome, Failure):
            yield _unreadable(media, outcome)
        for kind, reason, effect, badness in findings[number]:
            yield Problem(kind, media.label, reason, effect, badness)


def _missing_remedy(listing: Listing, samples: Manifest, kinds: Sequence[Outcome], which: NDArray[np.int64]) -> str:
    """Where the missing files of each entry may be."""
    missing = np.flatnonzero(np.array([each is _MISSING for each in kinds], bool)[which])
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
    for media in train.each_media() if isinstance(train, Manifest) else (sample.media for sample in train):
        identity = _file_identity(media)
        if identity in twins:
            twins[identity] = media.label
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
