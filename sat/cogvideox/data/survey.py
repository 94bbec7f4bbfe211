"""What a file will give to training, judged from its header. No torch here: `--check` looks at clips too."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cogvideox.buckets import Buckets, Fit
from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.images import ImageReader
from cogvideox.data.media import Media
from cogvideox.data.timing import ClipSpec, ClipTooShortError, frame_indices, frames_available, num_windows
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket

NUM_THREADS = min(8, os.cpu_count() or 1)


class NotCachedError(DataError):
    """What a cache was asked for and does not hold."""


@dataclass(frozen=True)
class Failure:
    """A file without a result, and why. too_short: it can be read, but lasts less than a sample; not_cached: nothing
    is wrong with it."""

    reason: str
    too_short: bool = False
    not_cached: bool = False

    @classmethod
    def of(cls, error: DataError) -> Failure:
        return cls(str(error), isinstance(error, ClipTooShortError), isinstance(error, NotCachedError))


@dataclass(frozen=True)
class Survey:
    """What a file will give.

    Args:
        source_fps, effective_fps: frames per second of the file, and of the result against the file's clock.
        duration_s: seconds from the first to the last frame of the file.
        width, height: pixels as shown.
        kept_share: part of the picture's area that the crop keeps, above 0 and at most 1.
        enlargement: result pixels per source pixel and side; below 1 the clip is reduced.
        num_repeated, num_padded: see FrameChoice.
        too_short: why the clip is too short, or None.
        frames_available: see timing.frames_available.
        buckets: those that suit it, its own one first.
        too_small: why it has too few pixels for any bucket, or None.
        num_windows: how many samples it gives.
        cuts: where it cuts to another scene, see timing.Cuts.
    """

    source_fps: float
    effective_fps: float
    duration_s: float
    width: int
    height: int
    kept_share: float
    enlargement: float
    num_repeated: int = 0
    num_padded: int = 0
    too_short: str | None = None
    frames_available: int = 0
    buckets: tuple[Bucket, ...] = ()
    too_small: str | None = None
    num_windows: int = 1
    cuts: tuple[int, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether it gives samples."""
        return self.too_short is None and self.too_small is None

    @classmethod
    def of(cls, info: ClipInfo, spec: ClipSpec, buckets: Buckets | None = None) -> Survey:
        """Judge a file; with `random_start` or windows "all", its first window. buckets: None for that of `spec`."""
        available = frames_available(info.timestamps, spec, info.cuts)
        size, too_small = (info.height, info.width), None
        choices: tuple[Bucket, ...] = (spec.bucket,)
        if buckets is not None:
            frames = available
            if spec.short_clips in ("pad", "loop"):
                frames = max(available, min(shape.frames for shape in buckets.shapes))
            choices = buckets.choices(size, frames)
            if not choices:
                shortest = min(buckets.shapes)  # what says whether it is too short
                too_small = buckets.why_none(size, frames) if frames >= shortest.frames else None
                choices = (shortest,)
        shape = choices[0]
        spec = replace(spec, video_size=(shape.height, shape.width), max_num_frames=shape.frames)
        fit = Fit.of(size, spec.video_size)
        survey = cls(
            source_fps=info.fps,
            effective_fps=0.0,
            duration_s=float(info.timestamps[-1]),
            width=info.width,
            height=info.height,
            kept_share=fit.kept_share,
            enlargement=fit.enlargement,
            frames_available=available,
            buckets=choices,
            cuts=tuple(info.cuts),
            too_small=too_small,
        )
        try:
            choice = frame_indices(info.timestamps, spec, cuts=info.cuts)
        except ClipTooShortError as error:
            return replace(survey, too_short=str(error))
        return replace(
            survey,
            effective_fps=choice.effective_fps,
            num_repeated=choice.num_repeated,
            num_padded=choice.num_padded,
            num_windows=num_windows(info.timestamps, spec, info.cuts),
        )


def reader_for(media: Media, reader: VideoReader) -> VideoReader:
    """`reader` for videos; image files are clips of one frame and have a reader of their own."""
    return ImageReader() if media.is_image else reader


def look_here(
    medias: Sequence[Media],
    reader: VideoReader,
    timeout_s: float,
    budget_s: float = float("inf"),
    num_threads: int = NUM_THREADS,
) -> Iterator[tuple[Media, ClipInfo | Failure]]:
    """Look at files in threads of this process, until the budget is spent. Results come when they are ready.

    Args:
        medias: the files, each once.
        reader: for videos.
        timeout_s: seconds that one file may take; one that takes longer is a Failure.
        budget_s: seconds for all. A file that is being looked at when they end counts as not looked at.
        num_threads: files at a time; libraries that read files leave Python's lock.
    """
    end = time.monotonic() + budget_s
    waiting, running = deque(medias), dict[Media, float]()  # media -> when it has to be done
    results: queue.SimpleQueue[tuple[Media, ClipInfo | Failure]] = queue.SimpleQueue()
    while waiting or running:
        now = time.monotonic()
        if now >= end:
            return
        while waiting and len(running) < num_threads:
            media = waiting.popleft()
            running[media] = now + timeout_s
            # One thread per file: a library that hangs can't be interrupted, so its thread is left behind.
            threading.Thread(target=_probe, args=(media, reader, results), daemon=True).start()
        try:
            media, found = results.get(timeout=max(0.0, min(end, *running.values()) - now))
        except queue.Empty:
            for media in [media for media, deadline in running.items() if deadline <= time.monotonic()]:
                del running[media]
                yield media, Failure(f"{media.label}: not decoded within clip_timeout_s={timeout_s:g} s")
            continue
        if running.pop(media, None) is not None:
            yield media, found


def _probe(media: Media, reader: VideoReader, results: queue.SimpleQueue[tuple[Media, ClipInfo | Failure]]) -> None:
    found: ClipInfo | Failure = Failure(f"{media.label}: the decoder failed, see the traceback above")
    try:
        found = reader_for(media, reader).probe(media)
    except DataError as error:
        found = Failure.of(error)
    finally:
        results.put((media, found))
