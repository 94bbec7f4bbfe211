"""Which frames of a clip are read: chosen by time, so that a clip plays at the configured rate whatever its
own rate is.

Letters: t frames of the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cogvideox.errors import DataError, ShapeError
from cogvideox.geometry import Bucket, Geometry

SHORT_CLIPS = ("error", "skip", "pad")
# Timestamps come rounded (milliseconds in Matroska). A target halfway between two frames takes the earlier one
# even when rounding puts it slightly past the middle, so that every container gives the same frames.
_TIE_SHARE = 1e-2


class ClipTooShortError(DataError):
    """A clip that lasts less than the frames asked for, with not one frame dropped at its ends."""


@dataclass(frozen=True)
class ClipSpec:
    """What every clip becomes.

    Args:
        video_size: height and width in pixels of the result.
        fps: frames per second of the result.
        max_num_frames: frames of the result, t = 4 k + 1.
        skip_frms_num: frames of the SOURCE that are dropped at its start and again at its end, as far as it
            has frames to spare; a whole number.
        short_clips: what happens to a clip that is too short: "error" refuses the data set, "skip" leaves the
            clip out, "pad" repeats its last frame.
        random_start: start anywhere in the clip, drawn from (seed, epoch, sample), instead of at its
            beginning.

    Raises:
        ShapeError: for a size that is not positive or a frame count that is not 4 k + 1.
        DataError: for any other value out of range.
    """

    video_size: tuple[int, int]
    fps: float = 8.0
    max_num_frames: int = 49
    skip_frms_num: float = 0.0
    short_clips: str = "error"
    random_start: bool = False

    def __post_init__(self) -> None:
        if len(self.video_size) != 2 or min(self.video_size) < 1:
            raise ShapeError(f"video_size is {list(self.video_size)}; it has to be [height, width], both at least 1")
        problem = Geometry().frames_problem(self.max_num_frames)
        if problem:
            raise ShapeError(f"max_num_frames {problem}")
        if not self.fps > 0:
            raise DataError(f"fps is {self.fps}; it has to be above 0")
        if self.skip_frms_num < 0 or self.skip_frms_num != int(self.skip_frms_num):
            raise DataError(f"skip_frms_num is {self.skip_frms_num}; it has to be a whole number of frames, at least 0")
        if self.short_clips not in SHORT_CLIPS:
            raise DataError(f"short_clips is {self.short_clips!r}; it has to be one of {', '.join(SHORT_CLIPS)}")

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


@dataclass(frozen=True, eq=False)
class FrameChoice:
    """The frames to read.

    Args:
        indices: int64 [t], ascending, with repeats where the source is slower than the result or has ended.
        effective_fps: result frames per second of source time, over the frames before any padding; 0 if that
            is one frame.
        num_repeated: frames that repeat their predecessor because the source has fewer frames per second.
        num_padded: frames at the end that repeat the last one because the source has ended.
    """

    indices: NDArray[np.int64]
    effective_fps: float
    num_repeated: int
    num_padded: int


def average_fps(timestamps: Timestamps) -> float:
    """Frames per second of a file, 0 where one frame says nothing."""
    return (len(timestamps) - 1) / float(timestamps[-1]) if len(timestamps) > 1 else 0.0


def frame_indices(timestamps: Timestamps, spec: ClipSpec, start_fraction: float = 0.0) -> FrameChoice:
    """Choose the frame nearest in time to each of t moments spaced 1 / fps.

    Args:
        timestamps: float64 [n], of the file.
        spec: what the clip becomes.
        start_fraction: in [0, 1]; where in the time to spare the first frame lies, 0 = at the start.

    Raises:
        ClipTooShortError: unless `short_clips` is "pad".
    """
    interval = float(np.median(np.diff(timestamps))) if len(timestamps) > 1 else 1 / spec.fps
    # The last frame is still the nearest one half an interval after it began.
    needed = spec.duration_s - interval / 2 - 1e-6
    if timestamps[-1] < needed and spec.short_clips != "pad":
        raise ClipTooShortError(_too_short(timestamps, spec))
    first = _frames_to_drop(timestamps, int(spec.skip_frms_num), needed)
    last = len(timestamps) - 1 - first
    spare = float(timestamps[last] - timestamps[first]) - spec.duration_s
    targets = timestamps[first] + start_fraction * max(spare, 0.0) + np.arange(spec.max_num_frames) / spec.fps
    indices = np.clip(_nearest(timestamps, targets, interval), first, last)
    past_the_end = int(np.sum(targets > timestamps[last] + interval / 2 + 1e-6))
    padded = max(0, min(past_the_end, int(np.sum(indices == last)) - 1))  # the last frame's first showing is none
    real = indices[: spec.max_num_frames - padded]
    elapsed = float(timestamps[real[-1]] - timestamps[real[0]])
    return FrameChoice(
        indices=indices,
        effective_fps=(len(real) - 1) / elapsed if elapsed > 0 else 0.0,
        num_repeated=int(np.sum(np.diff(real) == 0)),
        num_padded=padded,
    )


def _frames_to_drop(timestamps: Timestamps, most: int, needed_s: float) -> int:
    """How many frames to drop at each end: `most`, or fewer where only fewer leave `needed_s` seconds. A clip that is
    too short by itself, to be padded, loses none."""
    drops = np.arange(min(most, (len(timestamps) - 1) // 2) + 1)
    spans = timestamps[len(timestamps) - 1 - drops] - timestamps[drops]  # the more are dropped, the shorter
    return max(int(np.sum(spans >= needed_s)) - 1, 0)


def _nearest(timestamps: Timestamps, targets: NDArray[np.float64], interval: float) -> NDArray[np.int64]:
    after = np.clip(np.searchsorted(timestamps, targets), 0, len(timestamps) - 1)
    before = np.maximum(after - 1, 0)
    closer = timestamps[after] - targets + _TIE_SHARE * interval < targets - timestamps[before]
    return np.where(closer, after, before).astype(np.int64)


def _too_short(timestamps: Timestamps, spec: ClipSpec) -> str:
    return (
        f"spans {timestamps[-1]:.2f} s ({len(timestamps)} frames at {average_fps(timestamps):.2f} fps); "
        f"{spec.max_num_frames} frames at {spec.fps:g} fps need {spec.duration_s:.2f} s"
    )
