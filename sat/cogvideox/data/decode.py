"""Two readers of video files behind one small interface: decord (the default) and PyAV.

`read(path, choose)` opens a file once, asks `choose` which frames are wanted, and decodes no more than it has
to. What decord can't read, or doesn't read exactly, is read by PyAV instead; the result says which reader it was.

Letters: t frames of the result, n frames of the file, h w pixels of the source as shown, c = 3 colours (RGB).
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from cogvideox.data.timing import FrameChoice, Timestamps, average_fps
from cogvideox.errors import DataError

FrameChooser = Callable[[Timestamps], FrameChoice]
READERS = ("decord", "pyav")
# Codecs whose frames decord was found to return exactly (tests/data/test_decode.py).
_DECORD_EXACT = ("h264", "vp8", "vp9", "mjpeg")
# Codecs that take a new setting for skipping with every packet (dav1d takes it once, when it is opened).
_SKIPPING = ("h264", "hevc", "mpeg4")
# Reading from the previous key frame costs up to one group of frames twice; below this it saves nothing.
_SEEK_AFTER_FRAMES = 30


@dataclass(frozen=True, eq=False)
class ClipInfo:
    """What a file says about itself.

    Args:
        width, height: pixels as shown, that is after rotation.
        timestamps: float64 [n], seconds from the first frame; evenly spaced where the header gave only count
            and rate.
    """

    width: int
    height: int
    timestamps: Timestamps

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def fps(self) -> float:
        return average_fps(self.timestamps)


@dataclass(frozen=True, eq=False)
class DecodedFrames:
    """Frames uint8 [t, h, w, c], how they were chosen, and the name of the reader that read them."""

    frames: NDArray[np.uint8]
    choice: FrameChoice
    reader: str


class VideoReader(Protocol):
    """A reader of video files. It has to be picklable: decoding processes get a copy."""

    name: str

    def probe(self, path: str) -> ClipInfo:
        """What the file says about itself, cheaply. Raises DataError for a file that can't be read."""

    def read(self, path: str, choose: FrameChooser) -> DecodedFrames:
        """The chosen frames. Raises DataError for a file that can't be read; what `choose` raises passes
        through.
        """


def open_reader(name: str) -> VideoReader:
    """The reader of that name.

    Raises:
        DataError: for an unknown name.
    """
    if name == "decord":
        return DecordReader()
    if name == "pyav":
        return PyAVReader()
    raise DataError(f"reader is {name!r}; it has to be one of {', '.join(READERS)}")


class PyAVReader:
    """Decodes in sequence from the key frame before the first wanted frame, in one thread, and keeps only
    wanted frames.

    Frames that are not wanted and from which nothing is predicted are skipped inside the codec: with the B
    frames of usual H.264 files that saves a third of the work.
    """

    name = "pyav"

    def probe(self, path: str) -> ClipInfo:
        """From the header and the first frame; only containers that don't count their frames are scanned."""
        with _open(path) as (container, stream):
            first = next(container.decode(stream), None)
            if first is None:
                raise DataError(f"{path}: holds no frame that can be decoded")
            width, height = (first.height, first.width) if first.rotation % 180 else (first.width, first.height)
            rate = float(stream.average_rate or 0)
            if stream.frames > 0 and rate > 0:
                _check_complete(path, stream)
                return ClipInfo(width, height, np.arange(stream.frames, dtype=np.float64) / rate)
            container.seek(0, stream=stream)
            return ClipInfo(width, height, _PacketTimes.scan(path, container, stream).seconds)

    def read(self, path: str, choose: FrameChooser) -> DecodedFrames:
        """Frames are found by their presentation times, never by counting on an assumed rate."""
        with _open(path) as (container, stream):
            packets = _PacketTimes.scan(path, container, stream)
            choice = choose(packets.seconds)
            wanted = {packets.times[index] for index in choice.indices}
            thrifty = not packets.counted and stream.codec_context.name in _SKIPPING
            container.seek(packets.seek_to(int(choice.indices[0])), stream=stream)
            found = _decode(container, stream, wanted, counted=packets.counted, thrifty=thrifty)
            if len(found) < len(wanted):  # a codec or container that seeks or skips in its own way
                container.seek(0, stream=stream)
                found = _decode(container, stream, wanted, counted=packets.counted, thrifty=False)
            if len(found) < len(wanted):
                missing = len(wanted) - len(found)
                raise DataError(
                    f"{path}: {missing} of {len(wanted)} frames are missing; the file is truncated or broken"
                )
            frames = np.stack([found[packets.times[index]] for index in choice.indices])
        return DecodedFrames(frames, choice, self.name)


class DecordReader:
    """decord where it reads the right frames, PyAV for other files and for probing.

    decord 0.6 fails on some sizes (48 pixels wide) and codecs (AV1), and returns neighbours of the wanted frames
    for edit lists, HEVC with open groups, MPEG-4 with B frames and AVI. It scans a whole file to open it.
    """

    name = "decord"

    def probe(self, path: str) -> ClipInfo:
        """See PyAVReader.probe."""
        return PyAVReader().probe(path)

    def read(self, path: str, choose: FrameChooser) -> DecodedFrames:
        """The frames; `reader` of the result says who read them."""
        with _open(path) as (container, stream):
            is_exact = container.format.name != "avi" and stream.codec_context.name in _DECORD_EXACT
        if not is_exact:
            return PyAVReader().read(path, choose)
        # Imported here: only decoding processes need it.
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            clip = decord.VideoReader(path, num_threads=1)
            times = clip.get_frame_timestamp(np.arange(len(clip)))[:, 0].astype(np.float64)
            if times[0] < 0 or np.any(np.diff(times) <= 0):  # frames before the start that an edit list sets
                return PyAVReader().read(path, choose)
            choice = choose(times - times[0])
            unique, where = np.unique(choice.indices, return_inverse=True)
            frames = clip.get_batch(unique).asnumpy()[where]
        except (decord.DECORDError, RuntimeError, IndexError):
            return PyAVReader().read(path, choose)
        return DecodedFrames(frames, choice, self.name)


@dataclass(frozen=True, eq=False)
class _PacketTimes:
    """Times of a stream's frames in presentation order.

    Args:
        times: n ascending times in units of the stream, or 0..n-1 if `counted`.
        keys: the times that belong to key frames, ascending.
        counted: the container gives no presentation times (AVI): the i-th decoded frame is frame i.
        seconds: float64 [n], the times as seconds from the first.
    """

    times: list[int]
    keys: list[int]
    counted: bool
    seconds: Timestamps

    @classmethod
    def scan(cls, path: str, container: Any, stream: Any) -> _PacketTimes:
        # Discarded: before the start that an edit list sets, as in clips cut without encoding.
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise DataError(f"{path}: holds no video data")
        # AVI numbers packets in the order of decoding, which is not that of presentation.
        if container.format.name == "avi" or any(time is None for time, _ in packets):
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            if rate <= 0:
                raise DataError(f"{path}: gives neither times nor a frame rate")
            return cls(list(range(len(packets))), [0], True, np.arange(len(packets), dtype=np.float64) / rate)
        times = sorted({time for time, _ in packets})
        keys = sorted(time for time, is_key in packets if is_key)
        seconds = (np.asarray(times, dtype=np.float64) - times[0]) * float(stream.time_base)
        return cls(times, keys, False, seconds)

    def seek_to(self, index: int) -> int:
        """Where to seek so that frame `index` comes after a key frame."""
        before = bisect.bisect_right(self.keys, self.times[index])
        if self.counted or before == 0 or index < _SEEK_AFTER_FRAMES:
            return 0
        return self.keys[before - 1]


@contextmanager
def _open(path: str) -> Iterator[tuple[Any, Any]]:
    """A container and its first video stream, set to one thread; libav's and the file system's errors become
    DataErrors.
    """
    _check_file(path)
    try:
        with av.open(path, metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            stream.thread_count = 1
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: can't be read as a video: {error.strerror or error}") from error


def _check_file(path: str) -> None:
    if not os.path.isfile(path):
        raise DataError(f"{path}: is not a file")
    if os.path.getsize(path) == 0:
        raise DataError(f"{path}: is empty (0 bytes)")


def _check_complete(path: str, stream: Any) -> None:
    """Refuse a file that ends before the data that its index promises; older PyAV can't tell."""
    entries = getattr(stream, "index_entries", None)
    if not entries:
        return
    last = entries[len(entries) - 1]
    size = os.path.getsize(path)
    if last.pos + last.size > size:
        raise DataError(f"{path}: is truncated: it has {size} bytes of at least {last.pos + last.size}")


def _decode(
    container: Any, stream: Any, wanted: set[int], *, counted: bool, thrifty: bool
) -> dict[int, NDArray[np.uint8]]:
    """Decode from where the container stands until all wanted times are there; `thrifty` skips what it can."""
    found: dict[int, NDArray[np.uint8]] = {}
    number = 0
    context = stream.codec_context
    for packet in container.demux(stream):
        # Per packet: with one thread the codec reads this setting when it is given the packet.
        needed = packet.pts is None or packet.pts in wanted
        context.skip_frame = "NONREF" if thrifty and not needed else "DEFAULT"
        for frame in packet.decode():
            time = number if counted else frame.pts
            number += 1
            if time in wanted and time not in found and not frame.is_corrupt:
                found[time] = _to_rgb(frame)
        if len(found) == len(wanted):
            break
    return found


def _to_rgb(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    # Rotation is counter-clockwise, in degrees, in (-180, 180].
    return np.rot90(pixels, k=frame.rotation // 90) if frame.rotation else pixels
