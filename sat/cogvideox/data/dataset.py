"""The clips that training reads: samples, how they are decoded, and the report on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogvideox.data.clips import ClipDecoder, Failure, Survey, SurveyJob
from cogvideox.data.decode import VideoReader, open_reader
from cogvideox.data.images import is_image
from cogvideox.data.order import SampleIds, hash_words
from cogvideox.data.pool import Outcome, Task, open_pool
from cogvideox.data.report import Problem, SourceReport, Spread
from cogvideox.data.sources import Sample, find_pairs
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from cogvideox.log import get_logger

_log = get_logger(__name__)

CountTokens = Callable[[list[str]], Sequence[int]]


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

    Chosen by a hash of the sample ids: independent of the seed and of the order of folders.

    Args:
        dataset: at least two samples.
        share: of the samples to hold out, rounded, at least one; between 0 and 1, both excluded.

    Raises:
        DataError: for a share out of range, or when a side would be empty.
    """
    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share:g}; it has to lie between 0 and 1")
    count = max(1, round(share * len(dataset)))
    if count >= len(dataset):
        raise DataError(
            f"holding out {share:g} of {len(dataset)} samples leaves none to train on; give more clips or valid_data"
        )
    chosen = {sample.sample_id for sample in sorted(dataset.samples, key=_held_out_rank)[:count]}
    train = tuple(sample for sample in dataset.samples if sample.sample_id not in chosen)
    held_out = tuple(sample for sample in dataset.samples if sample.sample_id in chosen)
    return replace(dataset, samples=train), replace(dataset, samples=held_out)


def _held_out_rank(sample: Sample) -> int:
    return hash_words("held out", sample.sample_id)


def list_samples(
    roots: Sequence[str | Path],
    decoder: ClipDecoder,
    *,
    missing_captions: str = "error",
    max_failed_share: float = 0.05,
    clip_timeout_s: float = 60.0,
    num_workers: int = 2,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> tuple[list[Sample], SourceReport]:
    """Find the pairs in the roots and look at every file: header and first frame, in `num_workers` processes.

    Args:
        roots: folders, see sources.find_pairs; images count where the decoder's clips have one frame.
        decoder: decides on what is long enough.
        missing_captions: "error" or "empty".
        max_failed_share: for the report's verdict.
        clip_timeout_s: time limit for looking at a file.
        num_workers: decoding processes; 0 looks in this process.
        count_tokens: counts tokens of captions, end token included; with `max_tokens` names captions that
            will be cut.
        max_tokens: what the text encoder takes.

    Returns:
        The usable samples in order, and the report. Problems of single items don't raise: see
        SourceReport.check.

    Raises:
        DataError: for the roots themselves, see sources.find_pairs.
    """
    pairs = find_pairs(roots, missing_captions, with_images=decoder.spec.max_num_frames == 1)
    surveys = _survey(pairs.samples, decoder, num_workers, clip_timeout_s)
    problems = list(pairs.problems)
    usable: list[Sample] = []
    good: list[Survey] = []
    for sample, outcome in zip(pairs.samples, surveys, strict=True):
        found = _judge(sample.video_path, outcome, decoder.spec)
        problems += found
        if isinstance(outcome, Survey) and all(problem.effect == "kept" for problem in found):
            usable.append(sample)
            good.append(outcome)
    problems += _long_captions(usable, count_tokens, max_tokens)
    report = SourceReport(
        roots=tuple(str(root) for root in roots),
        num_videos=pairs.num_videos,
        num_samples=len(usable),
        problems=tuple(problems),
        source_fps=Spread.of([survey.source_fps for survey in good if survey.source_fps]),
        effective_fps=Spread.of([survey.effective_fps for survey in good if survey.effective_fps]),
        max_failed_share=max_failed_share,
        noun=_noun(pairs.samples),
    )
    return usable, report


def build_dataset(
    roots: Sequence[str | Path],
    spec: ClipSpec,
    *,
    reader: str | VideoReader = "decord",
    missing_captions: str = "error",
    max_failed_share: float = 0.05,
    clip_timeout_s: float = 60.0,
    num_workers: int = 2,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> VideoDataset:
    """List the samples, log the report, and refuse data that can't be trained on.

    Every process of a run may call this (the result is the same), or one may and send the result to the
    others: it is picklable. Arguments: see list_samples; `reader` is "decord", "pyav" or a reader of your
        own.

    Raises:
        DataError: see list_samples and SourceReport.check.
    """
    if not 0 <= max_failed_share <= 1:
        raise DataError(f"max_failed_share is {max_failed_share:g}; it has to lie between 0 and 1")
    decoder = ClipDecoder(spec, open_reader(reader) if isinstance(reader, str) else reader)
    samples, report = list_samples(
        roots,
        decoder,
        missing_captions=missing_captions,
        max_failed_share=max_failed_share,
        clip_timeout_s=clip_timeout_s,
        num_workers=num_workers,
        count_tokens=count_tokens,
        max_tokens=max_tokens,
    )
    report.check()
    _log.info("%s", report.text())
    return VideoDataset(tuple(samples), decoder, clip_timeout_s, max_failed_share)


def _survey(samples: Sequence[Sample], decoder: ClipDecoder, num_workers: int, timeout_s: float) -> list[Outcome]:
    # Starting a process takes a second or two; a handful of files is looked at sooner right here.
    pool = open_pool(decoder, num_workers if len(samples) > 50 else 0, timeout_s)
    try:
        for index, sample in enumerate(samples):
            pool.submit(Task(index, SurveyJob(sample.video_path)))
        outcomes: dict[object, Outcome] = {}
        while len(outcomes) < len(samples):
            result = pool.next_result()
            assert result is not None, "the pool was closed while surveying"
            outcomes[result[0]] = result[1]
    finally:
        pool.close()
    return [outcomes[index] for index in range(len(samples))]


def _judge(path: str, outcome: Outcome, spec: ClipSpec) -> list[Problem]:
    if isinstance(outcome, Failure):
        reason = outcome.reason.removeprefix(f"{path}: ")
        kind = "unreadable image" if is_image(path) else "unreadable video"
        return [Problem(kind, path, reason, effect="left out")]
    assert isinstance(outcome, Survey), outcome
    if outcome.too_short:
        effect = "left out" if spec.short_clips == "skip" else "error"
        return [Problem("too short", path, outcome.too_short, effect)]
    problems: list[Problem] = []
    if outcome.num_padded:
        reason = f"its last frame is repeated {outcome.num_padded} times"
        problems.append(Problem("padded", path, reason, effect="kept"))
    if outcome.num_repeated:
        repeats = f"{outcome.num_repeated} of {spec.max_num_frames} frames repeat the one before"
        problems.append(Problem("slow source", path, f"{outcome.source_fps:.2f} fps: {repeats}", effect="kept"))
    return problems


def _noun(samples: Sequence[Sample]) -> str:
    images = sum(is_image(sample.video_path) for sample in samples)
    return "videos" if not images else "images" if images == len(samples) else "videos and images"


def _long_captions(samples: Sequence[Sample], count: CountTokens | None, limit: int | None) -> list[Problem]:
    if count is None or limit is None or not samples:
        return []
    tokens = count([sample.caption for sample in samples])
    return [
        Problem(
            "long caption",
            sample.video_path,
            f"{number} tokens, the text encoder reads {limit}",
            effect="kept",
        )
        for sample, number in zip(samples, tokens, strict=True)
        if number > limit
    ]
