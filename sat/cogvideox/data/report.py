"""One report on the data before training: what was found, what is wrong with it, and what follows from
that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cogvideox.errors import DataError
from cogvideox.geometry import Bucket

# In the order in which they are listed.
KINDS = (
    "missing caption",
    "ambiguous caption",
    "unreadable caption",
    "incomplete row",
    "missing file",
    "unreadable video",
    "unreadable image",
    "too short",
    "too small",
    "held out and trained on",
    "cropped",
    "enlarged",
    "padded",
    "empty caption",
    "long caption",
    "multi-line caption",
    "slow source",
    "image among clips",
    "caption without video",
)
EFFECTS = ("error", "left out", "kept")
# What to do about items that aren't used, and about some that are.
_REMEDIES = {
    "missing caption": "write the captions, or set data.missing_captions=empty to train without",
    "ambiguous caption": "keep one caption file per video",
    "unreadable caption": "save the captions as UTF-8 text",
    "too small": "they are left out; a larger data.buckets.max_upscale takes them, or smaller shapes",
    "incomplete row": "correct these rows, or take them out of the list",
}
_ADVICE = {
    "held out and trained on": "their loss says nothing about new clips; take them out of one of the two folders",
    "cropped": "data.video_size in the shape of the clips keeps more of them",
    "enlarged": "training teaches their blur; take larger clips, or a smaller data.video_size",
}


def shown(text: str) -> str:
    """A path as it can be printed, whatever its bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Problem:
    """Something about one item: its kind, the file, the reason, and whether it stops training, is left out or
    is kept. badness: of two of a kind the one with more is listed first.
    """

    kind: str
    path: str
    reason: str
    effect: str = "error"
    badness: float = 0.0

    def __post_init__(self) -> None:
        assert self.kind in KINDS and self.effect in EFFECTS, (self.kind, self.effect)


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of some numbers."""

    smallest: float
    mean: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float], counts: Sequence[int] | None = None) -> Spread | None:
        """Of any number of values; None of none."""
        return cls.over(values, counts) if values else None

    @classmethod
    def over(cls, values: Sequence[float], counts: Sequence[int] | None = None) -> Spread:
        """Of at least one value. counts: how often each is there; None: once."""
        if counts is None:
            counts = [1] * len(values)
        total = sum(value * count for value, count in zip(values, counts, strict=True))
        return cls(min(values), total / sum(counts), max(values))

    def __str__(self) -> str:
        return self._told("{:.2f}")

    def percent(self) -> str:
        """Shares, as people write them."""
        return self._told("{:.0%}")

    def _told(self, form: str) -> str:
        smallest, mean, largest = (form.format(each) for each in (self.smallest, self.mean, self.largest))
        return smallest if smallest == largest else f"{smallest} to {largest}, mean {mean}"


def describe(problems: Sequence[Problem], remedies: Mapping[str, str] = _REMEDIES, limit: int | None = 20) -> list[str]:
    """Lines for people: every problem by kind, the worst first, at most `limit` of a kind (None: all), and what to
    do about it."""
    lines: list[str] = []
    for kind in KINDS:
        found = sorted((problem for problem in problems if problem.kind == kind), key=lambda each: -each.badness)
        if not found:
            continue
        effects = sorted({problem.effect for problem in found}, key=EFFECTS.index)
        lines.append(f"  {kind}: {len(found)} ({', '.join(effects)})")
        lines += [f"    {shown(problem.path)}: {shown(problem.reason)}" for problem in found[:limit]]
        if limit is not None and len(found) > limit:
            lines.append(f"    and {len(found) - limit} more")
        remedy = what_to_do(kind, effects, remedies)
        if remedy:
            lines.append(f"    what to do: {remedy}")
    return lines


def what_to_do(kind: str, effects: Sequence[str], remedies: Mapping[str, str] = _REMEDIES) -> str:
    """About problems of a kind that have these effects; "" where there is nothing to say."""
    return (_ADVICE if list(effects) == ["kept"] else remedies).get(kind, "")


@dataclass(frozen=True)
class SourceInfo:
    """A source that was read.

    Args:
        path, layout: of its entry; the layout as it was recognised.
        repeats: how often each of its samples comes in an epoch.
        num_samples: how many of them can be trained on; num_videos: how many there are.
    """

    path: str
    layout: str
    repeats: float = 1.0
    num_samples: int = 0
    num_videos: int = 0

    def text(self) -> str:
        """A line of the report."""
        often = "" if self.repeats == 1 else f", each {self.repeats:.4g} times in an epoch"
        return f"{shown(self.path)} ({self.layout}): {self.num_samples} of {self.num_videos} usable{often}"


@dataclass(frozen=True)
class BucketInfo:
    """A bucket with the samples whose own it is.

    Args:
        num_samples: how many; num_files: of how many files.
        kept_share, enlargement: of the files, see buckets.Fit.
        num_padded: frames that only fill clips up, of all files.
    """

    bucket: Bucket
    num_samples: int
    num_files: int
    kept_share: Spread
    enlargement: Spread
    num_padded: int = 0

    def text(self) -> str:
        """A line of the report."""
        padded = self.num_padded / (self.num_files * self.bucket.frames)
        more = f"; {padded:.1%} of the frames are padding" if self.num_padded else ""
        return (
            f"bucket {self.bucket} (frames, height, width): {self.num_samples} samples; the crop keeps "
            f"{self.kept_share.percent()}; enlarged {self.enlargement} times{more}"
        )


@dataclass(frozen=True)
class SourceReport:
    """What the entries of args.train_data or args.valid_data hold.

    Args:
        roots: the entries' paths.
        num_videos: video files found, and images where they count.
        num_samples: of these, usable for training; with `num_not_looked_at`, of those that were looked at.
        problems: everything there is to say about single items.
        source_fps, effective_fps: frames per second of the usable files, and of what is trained against the
            files' clocks (frames per second of source time: below the configured rate would be slow motion).
        max_failed_share: share of the videos that may be unreadable.
        noun: what the files are.
        num_not_looked_at: videos with captions for which there was no time.
        kept_share, enlargement: of the usable files, see survey.Survey; video_size: height and width of the result.
        too_short_remedy: what takes the clips that are too short; missing_remedy: where missing files may be.
        sources: what each entry gave.
        num_windows: samples of the usable files, where a long clip gives several; 0: not counted.
        buckets: what each bucket got; drawn: how many buckets a sample is drawn for, "" where it keeps its own.
    """

    roots: tuple[str, ...]
    num_videos: int
    num_samples: int
    problems: tuple[Problem, ...]
    source_fps: Spread | None
    effective_fps: Spread | None
    max_failed_share: float
    noun: str = "videos"
    num_not_looked_at: int = 0
    kept_share: Spread | None = None
    enlargement: Spread | None = None
    video_size: tuple[int, int] = (0, 0)
    too_short_remedy: str = ""
    missing_remedy: str = ""
    sources: tuple[SourceInfo, ...] = ()
    num_windows: int = 0
    buckets: tuple[BucketInfo, ...] = ()
    drawn: str = ""

    def of_kind(self, kind: str) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind == kind]

    @property
    def num_unreadable(self) -> int:
        """Files that are missing or can't be read."""
        return sum(len(self.of_kind(kind)) for kind in ("missing file", "unreadable video", "unreadable image"))

    @property
    def remedies(self) -> Mapping[str, str]:
        """What to do about problems, by kind."""
        return {**_REMEDIES, "too short": self.too_short_remedy, "missing file": self.missing_remedy}

    def text(self, limit: int | None = 20) -> str:
        """For people to read: totals, then every item by kind, at most `limit` of a kind (None: all)."""
        looked_at = self.num_videos - self.num_not_looked_at
        lines = [
            f"data: {self.num_samples} of {looked_at} {self.noun} usable, from {', '.join(map(shown, self.roots))}"
        ]
        if len(self.sources) > 1 or any(source.layout != "pairs" for source in self.sources):
            lines += [f"  {source.text()}" for source in self.sources]
        if self.num_not_looked_at:
            lines.append(f"  {looked_at} of {self.num_videos} {self.noun} were looked at")
        if self.num_windows > self.num_samples:
            lines.append(f"  they give {self.num_windows} windows, each of which is a sample")
        if self.source_fps and self.effective_fps:
            lines.append(f"  source fps {self.source_fps}; effective fps {self.effective_fps}")
        if len(self.buckets) > 1:
            lines += [f"  {each.text()}" for each in self.buckets]
        elif self.kept_share and self.enlargement:
            size = self.buckets[0].bucket[1:] if self.buckets else self.video_size
            lines.append(
                f"  at {size[0]} x {size[1]} (height x width) the crop keeps "
                f"{self.kept_share.percent()}; enlarged {self.enlargement} times (below 1: reduced)"
            )
        lines += [f"  {self.drawn}"] if self.drawn else []
        return "\n".join(lines + describe(self.problems, self.remedies, limit))

    def check(self) -> None:
        """Refuse data that can't be trained on.

        Raises:
            DataError: with the whole report, if any problem is an error, too many videos are unreadable, or
                none is left.
        """
        errors = [problem for problem in self.problems if problem.effect == "error"]
        if errors:
            first = errors[0]
            raise DataError(
                f"{len(errors)} of {self.num_videos} {self.noun} can't be used, "
                f"the first is {shown(first.path)}: {shown(first.reason)}\n{self.text()}"
            )
        if self.num_unreadable > self.max_failed_share * self.num_videos:
            raise DataError(
                f"{self.num_unreadable} of {self.num_videos} {self.noun} can't be read, more than "
                f"max_failed_share={self.max_failed_share:g} allows\n{self.text()}"
            )
        if not self.num_samples and self.num_not_looked_at < self.num_videos:
            raise DataError(f"none of the {self.noun} is usable\n{self.text()}")
