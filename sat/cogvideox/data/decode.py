"""The interface of all readers of video files, and the default one: PyAV.

`read(media, choose)` asks `choose` which frames are wanted, and decodes no more than it has to. The frames are what
players show (picture.py). What other readers (other_readers.py) can't read, or don't read exactly, is read by PyAV
instead; the result says which reader it was.

Letters: t frames of the result, n frames of the file, h w pixels of the source as shown, c = 3 colours (RGB).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from cogvideox.data.media import Media
from cogvideox.data.picture import Picture, deinterlaced
from cogvideox.data.timing import FrameChoice, Timestamps, average_fps
from cogvideox.data.video_file import FrameTimes, VideoFile, open_video, times_of_header, whole_frames
from cogvideox.errors import DataError

FrameChooser = Callable[[Timestamps], FrameChoice]
READERS = ("pyav", "decord", "torchcodec")
# Codecs that take a new setting for skipping with every packet (dav1d takes it once, when it is opened).
_SKIPPING = ("h264", "hevc", "mpeg4")
# Of one clip's frames as shown: 49 of 7680x4320 are 4.9e9. More would make the system end this or another process.
_MOST_BYTES = 6e9


@dataclass(frozen=True, eq=False)
class ClipInfo:
    """What a file says about itself.

    Args:
        width, height: as shown, that is turned and in square pixels.
        timestamps: float64 [n], seconds from the first frame; those that reading finds.
        cuts: where it cuts to another scene, see timing.Cuts; empty where nobody looked.
    """

    width: int
    height: int
    timestamps: Timestamps
    cuts: Sequence[int] = ()

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

    @property
    def name(self) -> str:
        """As in `data.reader`."""

    def probe(self, media: Media) -> ClipInfo:
        """What the file says about itself, cheaply. Raises DataError for a file that can't be read."""

    def read(self, media: Media, choose: FrameChooser) -> DecodedFrames:
        """The chosen frames. Raises DataError for a file that can't be read; what `choose` raises passes
        through.
        """


def open_reader(name: str, scene_cuts: str = "ignore") -> VideoReader:
    """The reader of that name.

    Args:
        name: one of READERS.
        scene_cuts: "avoid" makes `probe` decode all of a video and find its cuts.

    Raises:
        DataError: for an unknown name, or a reader whose libraries are missing.
    """
    if name not in READERS:
        raise DataError(f"reader is {name!r}; it has to be one of {', '.join(READERS)}")
    # Imported here: the usual case needs neither.
    from cogvideox.data import other_readers, scene_reader

    reader = PyAVReader() if name == "pyav" else other_readers.open_other(name)
    return scene_reader.SceneReader(reader) if scene_cuts == "avoid" else reader


class PyAVReader:
    """Decodes in sequence from the key frame before the first wanted frame, in one thread, and keeps only
    wanted frames.

    Frames that are not wanted and from which nothing is predicted are skipped inside the codec: with the B
    frames of usual H.264 files that saves a third of the work.
    """

    name = "pyav"

    def probe(self, media: Media) -> ClipInfo:
        """From the header and the first frame; the file is scanned where its header doesn't say all times."""
        with open_video(media) as video:
            seconds = times_of_header(video)
            if seconds is not None:
                return _info(video, seconds)
            seconds = FrameTimes.scan(video).seconds
        with open_video(media) as video:
            return _info(video, seconds)

    def read(self, media: Media, choose: FrameChooser) -> DecodedFrames:
        """Frames are found by their presentation times, never by counting on an assumed rate."""
        with open_video(media) as video:
            request = Request.make(video, choose)
            pixels = request.quickly(video)
        if pixels is None:
            pixels = request.carefully(media)
        return DecodedFrames(pixels, request.choice, self.name)


def _info(video: VideoFile, seconds: Timestamps) -> ClipInfo:
    """Of a file just opened."""
    height, width = Picture.of(video, next(whole_frames(video))).shown
    return ClipInfo(width, height, seconds)


def small_frames(media: Media, side: int) -> NDArray[np.uint8]:
    """All frames as they are stored, squeezed into side x side pixels by averaging: uint8 [n, side, side, c].

    Raises:
        DataError: the file can't be decoded to its end.
    """
    with open_video(media) as video:
        request = Request.make(video, _all_frames)
    with open_video(media) as video:
        return request.small(video, side)


def _all_frames(timestamps: Timestamps) -> FrameChoice:
    return FrameChoice(np.arange(len(timestamps)), average_fps(timestamps), 0, 0)


class _CantReadError(Exception):
    """The wanted frames can't be read in this way; the text says why."""


@dataclass(frozen=True, eq=False)
class Request:
    """What is wanted of a file.

    Args:
        times: of all frames of the file.
        choice: the frames that are wanted.
        wanted: the time of each wanted frame, and its places in the result.
    """

    times: FrameTimes
    choice: FrameChoice
    wanted: dict[int, list[int]]

    @classmethod
    def make(cls, video: VideoFile, choose: FrameChooser) -> Request:
        times = FrameTimes.scan(video)
        choice = choose(times.seconds)
        wanted: dict[int, list[int]] = {}
        for place, index in enumerate(choice.indices):
            wanted.setdefault(times.times[index], []).append(place)
        return cls(times, choice, wanted)

    def quickly(self, video: VideoFile) -> NDArray[np.uint8] | None:
        """The wanted frames, from a file that was scanned, and without what usual files don't need;
        None where that doesn't do.
        """
        key = self.times.key_before(int(self.choice.indices[0]))
        packets = None if key is None else video.packets_from(key)
        if key is None or packets is None:
            return None
        try:
            return self._pixels(self._decoded(video, packets, key, thrifty=video.decoder.name in _SKIPPING), video)
        except _CantReadError:
            return None

    def carefully(self, media: Media) -> NDArray[np.uint8]:
        """The wanted frames, deinterlaced; where decoding from the key frame before them fails, from the
        start of the file. Raises: DataError.
        """
        # Deinterlacing takes a frame's neighbours: one frame earlier.
        key = self.times.key_before(max(0, int(self.choice.indices[0]) - 1))
        try:
            with open_video(media) as video:
                packets = None if key is None else video.packets_from(key)
                if key is not None and packets is not None:
                    return self._pixels(deinterlaced(self._decoded(video, packets, key), video.stream.time_base), video)
        except _CantReadError:
            pass
        try:
            with open_video(media) as video:
                frames = self._decoded(video, video.packets(), self.times.whole_from)
                return self._pixels(deinterlaced(frames, video.stream.time_base), video)
        except _CantReadError as error:
            raise DataError(f"{media.label}: {error}") from None

    def small(self, video: VideoFile, side: int) -> NDArray[np.uint8]:
        """See small_frames; of a file just opened."""
        pixels, missing = np.zeros((len(self.choice.indices), side, side, 3), np.uint8), set(self.wanted)
        size: Any = {"width": side, "height": side, "interpolation": Interpolation.AREA}
        try:
            for number, frame in enumerate(self._decoded(video, video.packets(), self.times.whole_from)):
                time = number if self.times.counted else frame.pts
                if time in missing:
                    pixels[self.wanted[time]] = frame.reformat(format="rgb24", threads=1, **size).to_ndarray()
                    missing.remove(time)
            self._check_none(missing)
        except _CantReadError as error:
            raise DataError(f"{video.media.label}: {error}") from None
        return pixels

    def plain_size(self, video: VideoFile) -> tuple[int, int] | None:
        """Height and width, if all key frames among the wanted ones are whole, plain, and of one size."""
        key = self.times.key_before(int(self.choice.indices[0]))
        packets = None if key is None else video.packets_from(key)
        if key is None or packets is None:
            return None
        size = None
        try:
            for frame in self._decoded(video, self._key_packets(packets), key):
                picture = Picture.of(video, frame)
                if not picture.is_plain:
                    return None
                size = picture.stored
        except (_CantReadError, DataError):  # PyAV will say it
            return None
        return size

    def _key_packets(self, packets: Iterator[Any]) -> Iterator[Any]:
        last = max(self.wanted)
        for packet in packets:
            if packet.size == 0 or (packet.is_keyframe and packet.pts <= last):  # empty: the end, after which
                yield packet  # the decoder gives what it still holds

    def _pixels(self, frames: Iterator[Any], video: VideoFile) -> NDArray[np.uint8]:
        missing, pixels = set(self.wanted), None
        for number, frame in enumerate(frames):
            time = number if self.times.counted else frame.pts
            if time not in missing:
                continue
            picture = Picture.of(video, frame)
            if picture.is_interlaced:
                raise _CantReadError("its frames are interlaced in a format that can't be deinterlaced")
            if pixels is None:
                pixels = self._room_for(video.media.label, picture.shown)
            pixels[self.wanted[time]] = picture.show(frame)
            missing.remove(time)
            if not missing:
                return pixels
        self._check_none(missing)
        raise AssertionError("no frame was wanted")

    def _check_none(self, missing: set[int]) -> None:
        if missing:
            text = f"{len(missing)} of {len(self.wanted)} frames are missing; the file is truncated or broken"
            raise _CantReadError(text)

    def _room_for(self, path: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        shape = (len(self.choice.indices), *size, 3)
        if math.prod(shape) > _MOST_BYTES:
            raise DataError(
                f"{path}: {shape[0]} frames of {size[1]}x{size[0]} take {math.prod(shape) / 1e9:.1f} GB of memory, at "
                f"most {_MOST_BYTES / 1e9:g} are used; make the video smaller: ffmpeg -i IN -vf scale=-2:1080 OUT"
            )
        return np.empty(shape, np.uint8)

    def _decoded(
        self, video: VideoFile, packets: Iterator[Any], since: float, *, thrifty: bool = False
    ) -> Iterator[Any]:
        """The frames in order of presentation; `thrifty` skips what it can. What comes before `since` may be
        incomplete.

        Raises:
            _CantReadError: a frame is damaged.
            DataError: the size of the picture changes.
        """
        first = None
        for packet in packets:
            # Per packet: with one thread the codec reads this setting when it is given the packet.
            needed = packet.pts is None or packet.pts in self.wanted
            video.decoder.skip_frame = "NONREF" if thrifty and not needed else "DEFAULT"
            try:
                frames = video.decoder.decode(packet)
            except av.error.FFmpegError as error:
                if _is_before(since, packet.pts, first):
                    continue
                raise _CantReadError(f"{self._named(packet.pts)} is damaged ({error.strerror})") from error
            for frame in frames:
                if _is_before(since, frame.pts, first) and (frame.is_corrupt or since < math.inf):
                    continue
                if frame.is_corrupt:
                    raise _CantReadError(f"{self._named(frame.pts)} is damaged")
                first = first or frame
                if (frame.width, frame.height) != (first.width, first.height):
                    raise DataError(
                        f"{video.media.label}: the picture's size changes from {first.width}x{first.height} to "
                        f"{frame.width}x{frame.height} at {self._named(frame.pts)}; encode it again in one size, "
                        "or cut it there"
                    )
                yield frame

    def _named(self, time: int | None) -> str:
        if time is None or self.times.counted:
            return "a frame"
        index = bisect.bisect_left(self.times.times, time)
        return f"frame {index} ({self.times.seconds[min(index, len(self.times.times) - 1)]:.2f} s)"


def _is_before(since: float, time: int | None, first: Any) -> bool:
    """Whether a frame may be incomplete, see FrameTimes.whole_from; `first` is the first whole one, once it came."""
    if since == math.inf:
        return first is None
    return time is not None and time < since
