"""From folders to the samples that can be trained on, and the report on all of them. No torch here."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cogvideox.data import scenes
from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.header_cache import HeaderCache, cache_file
from cogvideox.data.media import Media
from cogvideox.data.report import Problem, SourceReport, Spread
from cogvideox.data.sample import Sample
from cogvideox.data.sources.pairs import find_pairs
from cogvideox.data.survey import Failure, Survey, expand_windows, look_here
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from cogvideox.log import get_logger

_log = get_logger(__name__)

Look = Callable[[Sequence[Media]], Iterable[tuple[Media, ClipInfo | Failure]]]
CountTokens = Callable[[list[str]], Sequence[int]]
# Below and above these a clip is named. A square clip keeps 67 % at 480 x 720, one of 9:16 keeps 38 %.
KEPT_SHARE_TO_NAME = 0.6
ENLARGEMENT_TO_NAME = 2.0
_REMEMBER_EVERY_S = 20.0


def list_samples(
    roots: Sequence[str | Path],
    spec: ClipSpec,
    reader: VideoReader,
    *,
    look: Look | None = None,
    missing_captions: str = "error",
    max_failed_share: float = 0.05,
) -> tuple[list[Sample], SourceReport]:
    """Find the pairs in the roots, and look at every file that isn't remembered from an earlier run.

    Args:
        roots: folders, see sources.find_pairs; images count where clips have one frame.
        spec: decides on what is long enough.
        reader: for videos.
        look: gives what is known of each file, in any order, or leaves some out; None looks at all of them here.
        missing_captions: "error" or "empty".
        max_failed_share: for the report's verdict.

    Returns:
        The usable samples in order, and the report. Samples that were not looked at are not among them. Problems of
        single items don't raise: see SourceReport.check.

    Raises:
        DataError: for the roots themselves, see sources.find_pairs.
    """
    pairs = find_pairs(roots, missing_captions, with_images=spec.max_num_frames == 1)
    name = f"{reader.name}, cuts {scenes.VERSION}" if spec.scene_cuts == "avoid" else reader.name
    outcomes = _look_at(
        [sample.media for sample in pairs.samples], HeaderCache(cache_file(), name), look or _all_here(reader)
    )
    problems = list(pairs.problems)
    usable: list[Sample] = []
    good: list[Survey] = []
    short: list[Survey] = []
    for sample in pairs.samples:
        outcome = outcomes.get(sample.media)
        if isinstance(outcome, ClipInfo):
            survey = Survey.of(outcome, spec)
            problems += _judge(sample.label, survey, spec)
            if survey.too_short is None:
                usable += expand_windows(sample, outcome, spec)
                good.append(survey)
            else:
                short.append(survey)
        elif outcome is not None:
            problems.append(_unreadable(sample.media, outcome))
    report = SourceReport(
        roots=tuple(str(root) for root in roots),
        num_videos=pairs.num_videos,
        num_samples=len(good),
        num_windows=len(usable),
        problems=tuple(problems),
        source_fps=Spread.of([survey.source_fps for survey in good if survey.source_fps]),
        effective_fps=Spread.of([survey.effective_fps for survey in good if survey.effective_fps]),
        max_failed_share=max_failed_share,
        noun=_noun(pairs.samples),
        num_not_looked_at=len(pairs.samples) - len(outcomes),
        kept_share=Spread.of([survey.kept_share for survey in good]),
        enlargement=Spread.of([survey.enlargement for survey in good]),
        video_size=spec.video_size,
        too_short_remedy=_too_short_remedy(short, spec),
    )
    return usable, report


def _look_at(medias: Sequence[Media], cache: HeaderCache, look: Look) -> dict[Media, ClipInfo | Failure]:
    """What is remembered or found of these files."""
    outcomes: dict[Media, ClipInfo | Failure] = dict(cache.get(medias))
    # In an order of their own, so that the first of them, where time doesn't suffice for all, are of all sorts.
    unknown = sorted((media for media in medias if media not in outcomes), key=_shuffled)
    found: dict[Media, ClipInfo] = {}
    since = time.monotonic()
    try:
        for media, outcome in look(unknown):
            outcomes[media] = outcome
            if isinstance(outcome, ClipInfo):
                found[media] = outcome
            if time.monotonic() - since > _REMEMBER_EVERY_S:
                _log.info("looked at %d of %d files", len(outcomes), len(medias))
                cache.put(found)
                found, since = {}, time.monotonic()
    finally:  # also when it is interrupted
        if found:
            cache.put(found)
    return outcomes


def _shuffled(media: Media) -> int:
    return zlib.crc32(os.fsencode(media.label))


def _all_here(reader: VideoReader) -> Look:
    return lambda medias: look_here(medias, reader, timeout_s=60.0)


def _unreadable(media: Media, outcome: Failure) -> Problem:
    kind = "unreadable image" if media.is_image else "unreadable video"
    return Problem(kind, media.label, outcome.reason.removeprefix(f"{media.label}: "), effect="left out")


def _judge(path: str, survey: Survey, spec: ClipSpec) -> list[Problem]:
    if survey.too_short is not None:
        effect = "error" if spec.short_clips == "error" else "left out"
        return [Problem("too short", path, survey.too_short, effect)]
    problems: list[Problem] = []

    def keep(kind: str, reason: str, badness: float = 0.0) -> None:
        problems.append(Problem(kind, path, reason, "kept", badness))

    shape = f"{survey.height} x {survey.width} pixels (height x width)"
    if survey.kept_share < KEPT_SHARE_TO_NAME:
        is_taller = survey.height * spec.video_size[1] > survey.width * spec.video_size[0]
        sides = "above and below" if is_taller else "at its sides"
        keep("cropped", f"{shape}: {1 - survey.kept_share:.0%} is cut off {sides}", -survey.kept_share)
    if survey.enlargement >= ENLARGEMENT_TO_NAME:
        keep("enlarged", f"{shape}: enlarged {survey.enlargement:.1f} times", survey.enlargement)
    if survey.num_padded:
        again = f"it is played again for {survey.num_padded} frames"
        last = f"its last frame is repeated {survey.num_padded} times"
        keep("padded", again if spec.short_clips == "loop" else last, survey.num_padded)
    if survey.num_repeated:
        repeats = f"{survey.num_repeated} of {spec.max_num_frames} frames repeat the one before"
        keep("slow source", f"{survey.source_fps:.2f} fps: {repeats}", survey.num_repeated)
    return problems


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
    tokens = count([sample.captions[0] for sample in samples])
    return [
        Problem("long caption", sample.label, f"{number} tokens, the text encoder reads {limit}", "kept", number)
        for sample, number in zip(samples, tokens, strict=True)
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
    trained = {identity: sample for sample in train if (identity := _file_identity(sample.media)) is not None}
    problems = []
    for sample in held_out:
        twin = trained.get(_file_identity(sample.media) or (-1, -1, -1))
        if twin is not None:
            where = "" if twin.label == sample.label else f", as {twin.label}"
            problems.append(Problem("held out and trained on", sample.label, f"in train_data too{where}", "kept"))
    return problems


def _file_identity(media: Media) -> tuple[int, int, int] | None:
    try:
        status = os.stat(media.path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, media.offset


def _noun(samples: Sequence[Sample]) -> str:
    images = sum(sample.media.is_image for sample in samples)
    return "videos" if not images else "images" if images == len(samples) else "videos and images"
