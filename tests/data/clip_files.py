"""Clips that the data tests render: every frame shows its own number, as eight bars that are bright or
dark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from cogvideox.data.decode import open_reader
from cogvideox.errors import DataError
from numpy.typing import NDArray

BITS = 8


def readers_here() -> tuple[str, ...]:
    """The names of all readers whose libraries are installed; torchcodec's are not among the project's own."""
    try:
        open_reader("torchcodec")
    except DataError:
        return ("decord", "pyav")
    return ("decord", "pyav", "torchcodec")


def numbered_frame(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] that shows `number` modulo 256."""
    bits = (number >> (np.arange(width) * BITS // width)) & 1
    row = np.where(bits == 1, 220, 30).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def read_number(frame: NDArray[np.uint8]) -> int:
    """The number that a frame shows."""
    height, width = frame.shape[:2]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(frame[height // 2, centre].mean() > 125) << bit for bit, centre in enumerate(centres))


def render(
    path: Path,
    num_frames: int = 60,
    fps: float | Fraction = 30,
    size: tuple[int, int] = (48, 96),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    key_every: int = 12,
    times_s: Sequence[float] | None = None,
    rotation: int = 0,
    faststart: bool = False,
) -> Path:
    """Write a numbered clip; `times_s` makes the frame rate variable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container = av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {})
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
    stream.height, stream.width = size
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.options = options or {}
    stream.codec_context.gop_size = key_every
    stream.thread_count = 1
    clock = Fraction(1, 90000)
    if times_s is not None:
        stream.codec_context.time_base = clock
    if rotation:
        stream.set_display_rotation(rotation)
    for number in range(num_frames):
        frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
        if times_s is not None:
            frame.pts, frame.time_base = round(times_s[number] / clock), clock
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    return path


def render_pair(video: Path, caption: str, **clip: int) -> Path:
    """A clip with its caption beside it."""
    render(video, **clip)  # type: ignore[arg-type]
    video.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return video


def cut_without_encoding(source: Path, path: Path, num_frames: int, fps: int) -> Path:
    """Move the start `num_frames` later through an edit list, as cutting with stream copy does."""
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        old = reading.streams.video[0]
        new = writing.add_stream_from_template(old)
        shift = round(Fraction(num_frames, fps) / old.time_base)
        for packet in reading.demux(old):
            if packet.dts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = new
            writing.mux(packet)
    return path


def write_frames(
    path: Path,
    frames: Iterable[av.VideoFrame],
    codec: str = "libx264",
    fps: int = 8,
    *,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    set_up: Callable[[av.VideoStream], None] | None = None,
) -> Path:
    """Write frames as they are; `set_up` changes the stream before the first one."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.options = options or {}
        stream.thread_count = 1
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, frame.format.name
                if set_up is not None:
                    set_up(stream)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def flat_frame(planes: Sequence[int], pixel_format: str, size: tuple[int, int]) -> av.VideoFrame:
    """One colour, given by the value of each plane."""
    frame = av.VideoFrame(size[1], size[0], pixel_format)
    for plane, value in zip(frame.planes, planes, strict=True):
        sample = np.uint16 if "10le" in pixel_format else np.uint8
        plane.update(np.full(plane.buffer_size // np.dtype(sample).itemsize, value, sample))
    return frame


def render_audio(path: Path) -> Path:
    """A second of silence without any video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
