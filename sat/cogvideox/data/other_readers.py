"""Readers that other libraries offer: decord and torchcodec, where they read the right frames; PyAV for other files.

Both leave to PyAV what they don't treat as players do. Files are probed by PyAV, and their key frames are decoded by
it, which finds damage and changes of size there; damage elsewhere stays unseen.

Letters: t frames of the result, u different ones among them, h w pixels of the source as shown, c = 3 colours (RGB).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cogvideox.data.decode import ClipInfo, DecodedFrames, FrameChooser, PyAVReader, Request, VideoReader
from cogvideox.data.media import Media
from cogvideox.data.video_file import open_video
from cogvideox.errors import DataError

Indices = NDArray[np.int64]


def open_other(name: str) -> VideoReader:
    """ "decord" or "torchcodec". Raises: DataError where its libraries are missing."""
    if name == "decord":
        return DecordReader()
    _torchcodec()
    return TorchCodecReader()


class _OtherReader(ABC):
    """name: of the library. codecs: those whose frames it was found to return exactly (tests/data/test_decode.py)."""

    name: ClassVar[str]
    codecs: ClassVar[tuple[str, ...]]
    reads_parts: ClassVar[bool]

    def probe(self, media: Media) -> ClipInfo:
        """See PyAVReader.probe."""
        return PyAVReader().probe(media)

    def read(self, media: Media, choose: FrameChooser) -> DecodedFrames:
        """The frames; `reader` of the result says who read them."""
        with open_video(media) as video:
            request = Request.make(video, choose)
            suits = video.decoder.name in self.codecs and (self.reads_parts or not media.is_part)
            size = request.plain_size(video) if suits else None
        if size is not None:
            unique, where = np.unique(request.choice.indices, return_inverse=True)
            pixels = self._fetch(media, request, unique)
            if pixels is not None and pixels.shape[1:3] == size:
                return DecodedFrames(pixels[where], request.choice, self.name)
        return PyAVReader().read(media, choose)

    @abstractmethod
    def _fetch(self, media: Media, request: Request, unique: Indices) -> NDArray[np.uint8] | None:
        """uint8 [u, h, w, c]; None where the library finds other frames, or none."""


class DecordReader(_OtherReader):
    """decord 0.6 fails on some sizes (48 pixels wide) and codecs (AV1), returns neighbours of the wanted frames for
    edit lists, HEVC with open groups, MPEG-4 with B frames and AVI, hides damage, and stretches pictures to the size
    of the first one. It scans a whole file to open it, and opens no parts of files.
    """

    name = "decord"
    codecs = ("h264", "vp8", "vp9")
    reads_parts = False

    def _fetch(self, media: Media, request: Request, unique: Indices) -> NDArray[np.uint8] | None:
        # Imported here: only decoding processes need it.
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            clip = decord.VideoReader(media.path, num_threads=1)
            times = clip.get_frame_timestamp(np.arange(len(clip)))[:, 0].astype(np.float64)
            if len(times) != len(request.times.times) or times[0] < 0 or np.any(np.diff(times) <= 0):
                return None
            pixels: NDArray[np.uint8] = clip.get_batch(unique).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError):
            return None
        return pixels


class TorchCodecReader(_OtherReader):
    """torchcodec takes FFmpeg's libraries from the system, so what it can read depends on them. It says the time of
    every frame that it returns: where that is not the frame asked for, PyAV reads the clip.
    """

    name = "torchcodec"
    codecs = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4")
    reads_parts = True

    def _fetch(self, media: Media, request: Request, unique: Indices) -> NDArray[np.uint8] | None:
        try:
            clip = _torchcodec().VideoDecoder(media.url, dimension_order="NHWC", num_ffmpeg_threads=1)
            if clip.metadata.num_frames != len(request.times.times):
                return None
            frames = clip.get_frames_at(unique.tolist())
        except (RuntimeError, ValueError, IndexError, OSError):
            return None
        seconds = frames.pts_seconds.numpy()
        wanted = request.times.seconds[unique]
        # The files' times differ by where they start. Half a millisecond: no two frames are that close.
        if np.max(np.abs(seconds - seconds[0] - (wanted - wanted[0]))) > 5e-4:
            return None
        pixels: NDArray[np.uint8] = frames.data.numpy()
        return pixels


def _torchcodec() -> Any:
    """Its module of decoders. Raises: DataError where it, or FFmpeg's libraries, are missing."""
    try:
        decoders = import_module("torchcodec.decoders")
        # Newer versions can be imported without FFmpeg, and fail when a file is opened.
        load = getattr(import_module("torchcodec._internally_replaced_utils"), "load_core_libraries", None)
        if load is not None:
            load()
    except ModuleNotFoundError as error:
        raise DataError(
            "data.reader=torchcodec needs the package torchcodec: pip install torchcodec; or data.reader=pyav"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].split(". ")[0]
        raise DataError(
            f"data.reader=torchcodec can't load its libraries: {reason}. It needs FFmpeg's shared libraries "
            "(apt install ffmpeg) and a build for this torch; data.reader=pyav needs neither"
        ) from error
    return decoders
