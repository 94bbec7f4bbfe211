"""What a file will give to training, judged from its header. No torch here: `--check` looks at clips too."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.images import ImageReader
from cogvideox.data.media import Media
from cogvideox.data.timing import ClipSpec, ClipTooShortError, frame_indices
from cogvideox.errors import DataError

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

    @classmethod
    def of(cls, info: ClipInfo, spec: ClipSpec) -> Survey:
        """Judge a file; with `random_start`, at its beginning."""
        height, width = spec.video_size
        enlargement = max(height / info.height, width / info.width)
        kept = height * width / (enlargement**2 * info.height * info.width)
        duration = float(info.timestamps[-1])
        try:
            choice = frame_indices(info.timestamps, spec)
        except ClipTooShortError as error:
            return cls(
                info.fps, 0.0, duration, info.width, info.height, kept, enlargement, too_short=str(error)
            )  # fmt: skip
        return cls(
            info.fps,
            choice.effective_fps,
            duration,
            info.width,
            info.height,
            kept,
            enlargement,
            choice.num_repeated,
            choice.num_padded,
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
