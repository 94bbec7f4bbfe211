"""Which frames of a clip are read: chosen by time, so that a clip plays at the configured rate whatever its own rate
is, or every n-th frame; where in a long clip; and what happens to a short one.

A clip is a row of stretches in which a sample may lie: the whole clip, or its scenes where a sample must not cross a
cut. Every choice here is a pure function of the file's times, its cuts and the settings.

Letters: t frames of the result, n frames of the file.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cogvideox.errors import DataError, ShapeError
from cogvideox.geometry import Bucket, Geometry

SHORT_CLIPS = ("error", "skip", "pad", "loop", "shorten")
WINDOWS = ("one", "all")
SCENE_CUTS = ("ignore", "avoid")
# Timestamps come rounded (milliseconds in Matroska). A target halfway between two frames takes the earlier one
# even when rounding puts it slightly past the middle, so that every container gives the same frames.
_TIE_SHARE = 1e-2
_ROUNDING_S = 1e-6


class ClipTooShortError(DataError):
    """A clip that lasts less than the frames asked for, with not one frame dropped at its ends."""


@dataclass(frozen=True)
class ClipSpec:
    """What every clip becomes.

    Args:
        video_size: height and width in pixels of the result.
        fps: frames per second of the result.
        max_num_frames: frames of the result, t; legal for `geometry`.
        skip_frms_num: frames of the SOURCE that are dropped at its start and again at its end, as far as it
            has frames to spare; a whole number.
        short_clips: what happens to a clip that is too short: "error" refuses the data set, "skip" leaves the
            clip out, "pad" repeats its last frame, "loop" plays it again from its start, "shorten" gives it the
            longest legal frame count that it has.
        random_start: start anywhere in the clip, drawn from (seed, epoch, sample), instead of at its
            beginning.
        frame_stride: every n-th frame of the source, whatever its rate; None chooses by time for `fps`.
        windows: "one" sample of a clip, or "all": as many as fit end to end, each a sample.
        scene_cuts: "avoid" keeps every sample inside one scene, "ignore" doesn't look for cuts.
        geometry: knows the legal frame counts.

    Raises:
        ShapeError: for a size that is not positive or an illegal frame count.
        DataError: for any other value out of range.
    """

    video_size: tuple[int, int]
    fps: float = 8.0
    max_num_frames: int = 49
    skip_frms_num: float = 0.0
    short_clips: str = "error"
    random_start: bool = False
    frame_stride: int | None = None
    windows: str = "one"
    scene_cuts: str = "ignore"
    geometry: Geometry = field(default_factory=Geometry)

    def __post_init__(self) -> None:
        if len(self.video_size) != 2 or min(self.video_size) < 1:
            raise ShapeError(f"video_size is {list(self.video_size)}; it has to be [height, width], both at least 1")
        problem = self.geometry.frames_problem(self.max_num_frames)
        if problem:
            raise ShapeError(f"max_num_frames {problem}")
        if not self.fps > 0:
            raise DataError(f"fps is {self.fps}; it has to be above 0")
        if self.skip_frms_num < 0 or self.skip_frms_num != int(self.skip_frms_num):
            raise DataError(f"skip_frms_num is {self.skip_frms_num}; it has to be a whole number of frames, at least 0")
        if self.frame_stride is not None and self.frame_stride < 1:
            raise DataError(f"frame_stride is {self.frame_stride}; it has to be at least 1, or null")
        for name, values in (("short_clips", SHORT_CLIPS), ("windows", WINDOWS), ("scene_cuts", SCENE_CUTS)):
            if getattr(self, name) not in values:
                raise DataError(f"{name} is {getattr(self, name)!r}; it has to be one of {', '.join(values)}")
        if self.random_start and self.windows == "all":
            raise DataError("random_start has no use with windows=all, which takes every part of a clip; keep one")

    @property
    def bucket(self) -> Bucket:
        """The one that clips have where no others are configured."""
        return Bucket(self.max_num_frames, *self.video_size)

    @property
    def varies(self) -> bool:
        """Whether the frames of a clip depend on seed, epoch and sample id."""
        return self.random_start

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last frame of the result."""
        return (self.max_num_frames - 1) / self.fps


Timestamps = NDArray[
    np.float64
]  # [n], seconds from the first frame to each of a file's n frames, ascending, the first 0
Cuts = Sequence[int]  # the first frame of every scene but the first one, ascending, each in 1..n-1


@dataclass(frozen=True, eq=False)
class FrameChoice:
    """The frames to read.

    Args:
        indices: int64 [t], ascending, with repeats where the source is slower than the result or has ended; with
            short_clips "loop" they go back to the first one. None is smaller than the first one.
        effective_fps: result frames per second of source time, over the frames before any padding; 0 if that
            is one frame.
        num_repeated: frames that repeat their predecessor because the source has fewer frames per second.
        num_padded: frames at the end that repeat the last one, or play the clip again, because the source has ended.
    """

    indices: NDArray[np.int64]
    effective_fps: float
    num_repeated: int
    num_padded: int


def average_fps(timestamps: Timestamps) -> float:
    """Frames per second of a file, 0 where one frame says nothing."""
    return (len(timestamps) - 1) / float(timestamps[-1]) if len(timestamps) > 1 else 0.0


def frame_indices(
    timestamps: Timestamps, spec: ClipSpec, start_fraction: float = 0.0, window: int = 0, cuts: Cuts = ()
) -> FrameChoice:
    """Choose the frame nearest in time to each of t moments spaced 1 / fps; with `frame_stride` every n-th frame.

    Args:
        timestamps: float64 [n], of the file.
        spec: what the clip becomes.
        start_fraction: in [0, 1]; where in the time to spare the first frame lies, 0 = at the start.
        window: which of the `num_windows` that lie end to end; 0 with windows "one".
        cuts: of the file, where `scene_cuts` is "avoid".

    Raises:
        ClipTooShortError: unless `short_clips` is "pad" or "loop".
    """
    clock = _Clock.of(timestamps, spec)
    stretches = _stretches(clock, spec, cuts)
    fitting = [each for each in stretches if clock.spare(each) >= 0]
    if fitting and spec.windows == "all":
        stretch, start = _window_start(clock, fitting, window)
    elif fitting:
        stretch, start = _random_start(clock, fitting, start_fraction)
    elif spec.short_clips in ("pad", "loop"):
        stretch = max(stretches, key=clock.span)
        start = clock.position(stretch.first)
    else:
        raise ClipTooShortError(_too_short(timestamps, spec, _scenes(len(timestamps), spec, cuts)))
    return _choose(timestamps, clock, spec, stretch, start)


def num_windows(timestamps: Timestamps, spec: ClipSpec, cuts: Cuts = ()) -> int:
    """How many samples a clip gives: with windows "all" every full window, else one; 0 for a clip that is too short.

    Windows lie end to end, within each scene; what is left behind the last one is in none. A clip without a full
    window gives one sample where `short_clips` is "pad" or "loop".

    Args: see frame_indices.
    """
    clock = _Clock.of(timestamps, spec)
    fitting = [each for each in _stretches(clock, spec, cuts) if clock.spare(each) >= 0]
    if not fitting:
        return int(spec.short_clips in ("pad", "loop"))
    return sum(map(clock.windows_in, fitting)) if spec.windows == "all" else 1


def frames_available(timestamps: Timestamps, spec: ClipSpec, cuts: Cuts = ()) -> int:
    """How many frames of the result the longest scene of a clip has at the rate or stride of `spec`, without padding
    and without dropping any; at least 1. The clip may be trained at any legal frame count up to it.

    Args: see frame_indices.
    """
    clock = _Clock.of(timestamps, spec)
    return clock.frames_in(max(clock.span(each) for each in _scenes(len(timestamps), spec, cuts)))


class _Stretch(NamedTuple):
    """Frames of the file in which a sample may lie; both ends are included."""

    first: int
    last: int


@dataclass(frozen=True, eq=False)
class _Clock:
    """What positions in a file are counted in: seconds, or frames where there is a stride.

    Args:
        ticks: float64 [n], the position of each frame of the file, ascending.
        step: from one frame of the result to the next.
        length: from the first to the last frame of the result.
        interval: from one frame of the file to the next, as usual in it.
        slack: how much longer than its span a stretch lasts: the last frame is still the nearest one half an interval
            after it began.
        is_exact: positions are whole numbers.
    """

    ticks: NDArray[np.float64]
    step: float
    length: float
    interval: float
    slack: float
    is_exact: bool

    @classmethod
    def of(cls, timestamps: Timestamps, spec: ClipSpec) -> _Clock:
        if spec.frame_stride is not None:
            step = float(spec.frame_stride)
            ticks = np.arange(len(timestamps), dtype=np.float64)
            return cls(ticks, step, (spec.max_num_frames - 1) * step, 1.0, 0.25, True)
        interval = float(np.median(np.diff(timestamps))) if len(timestamps) > 1 else 1 / spec.fps
        return cls(timestamps, 1 / spec.fps, spec.duration_s, interval, interval / 2 + _ROUNDING_S, False)

    def position(self, frame: int) -> float:
        return float(self.ticks[frame])

    def span(self, stretch: _Stretch) -> float:
        """From the first to the last frame of a stretch."""
        return float(self.ticks[stretch.last] - self.ticks[stretch.first])

    def spare(self, stretch: _Stretch) -> float:
        """By how much a stretch is longer than the result; below 0 it is too short."""
        spare = self.span(stretch) - self.length
        return max(spare, 0.0) if spare >= -self.slack else spare

    def frames_in(self, span: float) -> int:
        """Frames of the result that a stretch of this span has."""
        return math.floor((span + self.slack) / self.step) + 1

    def windows_in(self, stretch: _Stretch) -> int:
        """Full windows, end to end, in a stretch that has one."""
        period = self.length + self.step
        return 1 + math.floor(max(self.span(stretch) + self.slack - self.length, 0.0) / period)


def _scenes(num_frames: int, spec: ClipSpec, cuts: Cuts) -> list[_Stretch]:
    starts = [0, *(cuts if spec.scene_cuts == "avoid" else ())]
    return [_Stretch(first, after - 1) for first, after in zip(starts, [*starts[1:], num_frames], strict=True)]


def _stretches(clock: _Clock, spec: ClipSpec, cuts: Cuts) -> list[_Stretch]:
    """The scenes without the frames that are dropped at the ends of the clip: `skip_frms_num`, or fewer where only
    fewer leave a stretch that is long enough. A clip that is too short by itself loses none."""
    num_frames = len(clock.ticks)
    scenes = _scenes(num_frames, spec, cuts)

    def without(drop: int) -> list[_Stretch]:
        inner = [_Stretch(max(each.first, drop), min(each.last, num_frames - 1 - drop)) for each in scenes]
        return [each for each in inner if each.first <= each.last]

    def is_too_many(drop: int) -> bool:  # the more are dropped, the shorter
        return all(clock.spare(each) < 0 for each in without(drop))

    most = min(int(spec.skip_frms_num), (num_frames - 1) // 2)
    return without(max(bisect.bisect_left(range(most + 1), True, key=is_too_many) - 1, 0))


def _window_start(clock: _Clock, fitting: Sequence[_Stretch], window: int) -> tuple[_Stretch, float]:
    left = window
    for stretch in fitting:
        count = clock.windows_in(stretch)
        if left < count:
            return stretch, clock.position(stretch.first) + left * (clock.length + clock.step)
        left -= count
    # The survey counted more: the file was changed since.
    raise ClipTooShortError(f"has no window {window} any more; only {window - left} fit")


def _random_start(clock: _Clock, fitting: Sequence[_Stretch], fraction: float) -> tuple[_Stretch, float]:
    """Every start in every stretch is as likely as any other."""
    spare = np.array([clock.spare(each) for each in fitting])
    weights = spare + clock.interval
    ends = np.cumsum(weights)
    chosen = min(int(np.searchsorted(ends, fraction * ends[-1], side="right")), len(fitting) - 1)
    local = min(max((fraction * ends[-1] - (ends[chosen] - weights[chosen])) / weights[chosen], 0.0), 1.0)
    offset = min(math.floor(local * weights[chosen]), spare[chosen]) if clock.is_exact else local * spare[chosen]
    return fitting[chosen], clock.position(fitting[chosen].first) + float(offset)


def _choose(timestamps: Timestamps, clock: _Clock, spec: ClipSpec, stretch: _Stretch, start: float) -> FrameChoice:
    targets = start + np.arange(spec.max_num_frames, dtype=np.float64) * clock.step
    first, last = stretch
    num_padded = int(np.sum(targets > clock.ticks[last] + clock.slack))
    if num_padded and spec.short_clips == "loop":
        period = clock.span(stretch) + clock.interval
        rounds = math.ceil((targets[-1] - start) / period) + 1
        inside = clock.ticks[first : last + 1]
        played = np.concatenate([inside + number * period for number in range(rounds)])
        indices = first + _nearest(played, targets, clock.interval) % len(inside)
    else:
        indices = np.clip(_nearest(clock.ticks, targets, clock.interval), first, last)
        if not clock.is_exact:  # by time, the first showing of the last frame is no padding
            num_padded = max(0, min(num_padded, int(np.sum(indices == last)) - 1))
    real = indices[: spec.max_num_frames - num_padded]
    elapsed = float(timestamps[real[-1]] - timestamps[real[0]])
    return FrameChoice(
        indices=indices,
        effective_fps=(len(real) - 1) / elapsed if elapsed > 0 else 0.0,
        num_repeated=int(np.sum(np.diff(real) == 0)),
        num_padded=num_padded,
    )


def _nearest(ticks: NDArray[np.float64], targets: NDArray[np.float64], interval: float) -> NDArray[np.int64]:
    after = np.clip(np.searchsorted(ticks, targets), 0, len(ticks) - 1)
    before = np.maximum(after - 1, 0)
    closer = ticks[after] - targets + _TIE_SHARE * interval < targets - ticks[before]
    return np.where(closer, after, before).astype(np.int64)


def _too_short(timestamps: Timestamps, spec: ClipSpec, scenes: Sequence[_Stretch]) -> str:
    longest = max(scenes, key=lambda scene: timestamps[scene.last] - timestamps[scene.first])
    num_frames = longest.last - longest.first + 1
    who = "" if len(scenes) == 1 else f"the longest of its {len(scenes)} scenes "
    if spec.frame_stride is not None:
        needed = (spec.max_num_frames - 1) * spec.frame_stride + 1
        return f"{who}has {num_frames} frames; {spec.max_num_frames} frames at stride {spec.frame_stride} need {needed}"
    spans = float(timestamps[longest.last] - timestamps[longest.first])
    return (
        f"{who}spans {spans:.2f} s ({num_frames} frames at {average_fps(timestamps):.2f} fps); "
        f"{spec.max_num_frames} frames at {spec.fps:g} fps need {spec.duration_s:.2f} s"
    )
