"""What a file will give to training, judged from its header. No torch here: `--check` looks at clips too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.images import ImageReader, is_image
from cogvideox.data.timing import ClipSpec, ClipTooShortError, frame_indices
from cogvideox.errors import DataError


@dataclass(frozen=True)
class Failure:
    """A file without a result, and why. too_short: it can be read, but lasts less than a sample."""

    reason: str
    too_short: bool = False

    @classmethod
    def of(cls, error: DataError) -> Failure:
        return cls(str(error), isinstance(error, ClipTooShortError))


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


def reader_for(path: str, reader: VideoReader) -> VideoReader:
    """`reader` for videos; image files are clips of one frame and have a reader of their own."""
    return ImageReader() if is_image(path) else reader


def look_here(
    paths: Sequence[str], reader: VideoReader, timeout_s: float, budget_s: float = float("inf")
) -> Iterator[tuple[str, ClipInfo | Failure]]:
    """Look at files one after the other in this process, until the budget is spent.

    Args:
        paths: the files.
        reader: for videos.
        timeout_s: seconds that one file may take; one that takes longer is a Failure.
        budget_s: seconds for all. A file that is being looked at when they end counts as not looked at.
    """
    end = time.monotonic() + budget_s
    for path in paths:
        left = end - time.monotonic()
        if left <= 0:
            return
        found = _probe_within(min(timeout_s, left), path, reader)
        if found is not None:
            yield path, found
        elif left > timeout_s:
            yield path, Failure(f"{path}: not decoded within clip_timeout_s={timeout_s:g} s")


def _probe_within(seconds: float, path: str, reader: VideoReader) -> ClipInfo | Failure | None:
    """None when it takes longer: a library that hangs can't be interrupted, so its thread is left behind."""
    found: list[ClipInfo | Failure] = []

    def work() -> None:
        try:
            found.append(reader_for(path, reader).probe(path))
        except DataError as error:
            found.append(Failure.of(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found and not thread.is_alive():
        return Failure(f"{path}: the decoder failed, see the traceback above")
    return found[0] if found else None
