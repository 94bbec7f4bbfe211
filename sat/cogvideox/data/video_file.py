"""A video file as it is opened, and the times of its frames."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from cogvideox.data.media import Media
from cogvideox.data.timing import Timestamps
from cogvideox.errors import DataError, UserError

# What libav, PyAV and numpy were seen to raise for files that somebody else wrote.
_RAISED_BY_DECODERS = (
    av.error.FFmpegError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    MemoryError,
)
# libav's own decoders of these leave transparency out; libvpx reads it.
_DECODERS_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Containers whose index lists every frame: MP4, MOV, 3GP.
_INDEXED = "mov,mp4,m4a,3gp,3g2,mj2"
# Reading from the previous key frame costs up to one group of frames twice; below this it saves nothing.
_SEEK_AFTER_FRAMES = 30


@dataclass(frozen=True, eq=False)
class VideoFile:
    """An open file: PyAV's container, its first video stream, and the decoder of that stream. The decoder has one
    thread, and reports damage instead of hiding it.
    """

    media: Media
    container: Any
    stream: Any
    decoder: Any

    @property
    def counts_frames(self) -> bool:
        """AVI numbers packets in the order of decoding, and gives no times."""
        return bool(self.container.format.name == "avi")

    def packets(self) -> Iterator[Any]:
        """All packets of the video stream from where the container stands."""
        packets: Iterator[Any] = self.container.demux(self.stream)
        return packets

    def packets_from(self, key: int) -> Iterator[Any] | None:
        """The packets from the key frame at that time; None where this container can't go there exactly."""
        try:
            self.container.seek(key, stream=self.stream)
            first = next(self.packets(), None)
        except av.error.FFmpegError:
            return None
        if first is None or first.pts != key or not first.is_keyframe:
            return None
        return itertools.chain([first], self.packets())


@contextmanager
def open_video(media: Media) -> Iterator[VideoFile]:
    """Open a file. Whatever libav, PyAV or the file system raises until it is closed becomes a DataError with the
    file's name.

    Raises: DataError.
    """
    media.check()
    path = media.label
    try:
        with av.open(media.url, metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"{path}: its video is in a format that libav can't decode")
            yield VideoFile(media, container, stream, _decoder(stream))
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: can't be read as a video: its frames don't fit into memory") from error
    except _RAISED_BY_DECODERS as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: can't be read as a video: {text}") from error


def _decoder(stream: Any) -> Any:
    decoder = stream.codec_context
    has_alpha = any(name.lower() == "alpha_mode" and value == "1" for name, value in stream.metadata.items())
    if has_alpha and decoder.name in _DECODERS_WITH_ALPHA:
        decoder = av.CodecContext.create(_DECODERS_WITH_ALPHA[decoder.name], "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}
    return decoder


def whole_frames(video: VideoFile) -> Iterator[Any]:
    """All frames of a file just opened from the first one that can be shown: in a stream that was cut between key
    frames, what comes before it can't be decoded. Raises: DataError where there is none.
    """
    found = False
    for packet in video.packets():
        try:
            frames = video.decoder.decode(packet)
        except av.error.FFmpegError:
            if found:
                raise
            continue
        for frame in frames:
            found = found or not frame.is_corrupt
            if found:
                yield frame
    if not found:
        raise DataError(f"{video.media.label}: holds no frame that can be decoded")


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """Times of a stream's frames in presentation order.

    Args:
        times: n ascending times in units of the stream, or 0..n-1 if `counted`.
        keys: the times of key frames, ascending; they may lie before the first frame that is shown.
        counted: the container doesn't give all presentation times (AVI; Matroska that starts before 0): the i-th
            decoded frame is frame i.
        whole_from: frames before this time can't be decoded, since the stream was cut between key frames; infinity:
            neither can those before the first whole frame.
        seconds: float64 [n], the times as seconds from the first.
    """

    times: list[int]
    keys: list[int]
    counted: bool
    whole_from: float
    seconds: Timestamps

    @classmethod
    def scan(cls, video: VideoFile) -> FrameTimes:
        """From all packets of the file, which are only decoded where they don't say all times. Raises: DataError."""
        packets = [(packet.pts, packet.is_keyframe, packet.is_discard) for packet in video.packets() if packet.size]
        # Discarded: before the start or after the end that an edit list sets, as in clips cut without encoding.
        shown = [time for time, _, is_discard in packets if not is_discard]
        if not shown:
            raise DataError(f"{video.media.label}: holds no video data")
        if video.counts_frames:
            return cls._counted(video, len(shown), -math.inf)
        if any(time is None for time, _, _ in packets):
            with open_video(video.media) as again:
                return cls._counted(video, sum(1 for _ in whole_frames(again)), math.inf)
        times, whole_from = sorted(set(shown)), -math.inf
        first, first_is_key, _ = packets[0]
        if not first_is_key or first > min(time for time, _, _ in packets):
            with open_video(video.media) as again:
                whole_from = next(whole_frames(again)).pts
            times = [time for time in times if time >= whole_from]
        keys = sorted(time for time, is_key, _ in packets if is_key)
        seconds = (np.asarray(times, dtype=np.float64) - times[0]) * float(video.stream.time_base)
        return cls(times, keys, False, whole_from, seconds)

    @classmethod
    def _counted(cls, video: VideoFile, count: int, whole_from: float) -> FrameTimes:
        rate = float(video.stream.average_rate or video.stream.guessed_rate or 0)
        if rate <= 0:
            raise DataError(f"{video.media.label}: gives neither times nor a frame rate")
        return cls(list(range(count)), [], True, whole_from, np.arange(count, dtype=np.float64) / rate)

    def key_before(self, index: int) -> int | None:
        """The time of the key frame from which frame `index` is reached soonest; None where there is none."""
        before = bisect.bisect_right(self.keys, self.times[index])
        if before == 0:
            return None
        return self.keys[before - 1 if index >= _SEEK_AFTER_FRAMES else 0]


def times_of_header(video: VideoFile) -> Timestamps | None:
    """The frames' times by the index in the file's header; None where only the packets say them: other containers,
    fragments, frames hidden by an edit list, an uneven frame rate.

    Raises:
        DataError: the file ends before the data that its index promises.
    """
    if video.container.format.name != _INDEXED:
        return None
    entries = list(video.stream.index_entries)
    if not entries:
        return None
    end, size = max(entry.pos + entry.size for entry in entries), video.media.check()
    if end > size:
        raise DataError(f"{video.media.label}: is truncated: it has {size} bytes of at least {end}")
    times = np.array([entry.timestamp for entry in entries], dtype=np.float64)
    steps = np.diff(times)
    is_usual = len(entries) == video.stream.frames and entries[0].is_keyframe
    # These are the times of decoding. Where all steps are the same, those of presentation are the same steps.
    is_even = not len(steps) or (steps[0] > 0 and bool(np.all(steps == steps[0])))
    if not is_usual or not is_even or any(entry.is_discard for entry in entries):
        return None
    seconds: Timestamps = (times - times[0]) * float(video.stream.time_base)
    return seconds
