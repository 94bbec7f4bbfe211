"""How the stored pictures of a video become the picture that players show.

Letters: h w pixels, c = 3 colours (RGB).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image

from cogvideox.data import colours
from cogvideox.data.video_file import VideoFile
from cogvideox.errors import DataError

_UNSPECIFIED = (2, 3)  # in H.273's tables
_MATRIX_BT709, _MATRIX_BT2020 = 1, 9
# Matrices that libav's scaler knows: RGB, BT.709, FCC, BT.601 (625 and 525 lines), SMPTE 240M, BT.2020.
_KNOWN_MATRICES = (0, 1, *_UNSPECIFIED, 4, 5, 6, 7, 9)
_LARGEST_ASPECT = 16


@dataclass(frozen=True)
class Picture:
    """What has to be done with a stored picture.

    Args:
        stored: height and width in pixels, as stored.
        square: the same in square pixels, before the picture is turned.
        flips: whether the picture is mirrored, first exchanging rows and columns, then top and bottom, then left
            and right.
        matrix: the matrix of colours, where the file doesn't say it and libav takes another one than players.
        matrix, transfer, primaries: as numbers of H.273.
        has_alpha: it has transparent parts; they are shown on white.
        is_interlaced: two half pictures, taken at different times.
    """

    stored: tuple[int, int]
    square: tuple[int, int]
    flips: tuple[bool, bool, bool]
    matrix: int | None
    transfer: int
    primaries: int
    has_alpha: bool
    is_interlaced: bool

    @classmethod
    def of(cls, video: VideoFile, frame: Any) -> Picture:
        """Of a decoded frame. Raises: DataError for what can't be shown rightly."""
        if frame.colorspace not in _KNOWN_MATRICES:
            raise DataError(
                f"{video.media.label}: its colours are coded by matrix {frame.colorspace} of H.273, "
                "which can't be read; encode it again as BT.709"
            )
        stored = (frame.height, frame.width)
        return cls(
            stored=stored,
            square=_square_pixels(video.media.label, stored, video.stream.sample_aspect_ratio),
            flips=_flips(video.media.label, frame),
            matrix=_matrix(frame),
            transfer=frame.color_trc,
            primaries=frame.color_primaries,
            has_alpha=frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components),
            is_interlaced=frame.interlaced_frame,
        )

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width in pixels, as shown."""
        return self.square[::-1] if self.flips[0] else self.square

    @property
    def is_plain(self) -> bool:
        """Whether the stored picture in RGB is what is shown."""
        return (
            self.stored == self.square
            and not any(self.flips)
            and self.matrix is None
            and not colours.needs_conversion(self.transfer, self.primaries)
            and not self.has_alpha
            and not self.is_interlaced
        )

    def show(self, frame: Any) -> NDArray[np.uint8]:
        """uint8 [h, w, c], maybe a view that isn't contiguous; the frame has to be of this picture, and not be
        interlaced any more.
        """
        if self.matrix is not None:
            frame.colorspace = self.matrix  # the argument of `reformat` has no name for BT.2020 before PyAV 18
        size = {}
        if self.stored != self.square:
            size = {"height": self.square[0], "width": self.square[1], "interpolation": Interpolation.BICUBIC}
        if colours.needs_conversion(self.transfer, self.primaries):
            coded = _reformat(frame, "rgb48le")
            pixels = _reformat(colours.to_srgb(coded, self.transfer, self.primaries), "rgb24", **size).to_ndarray()
        else:
            pixels = _reformat(frame, "rgb24", **size).to_ndarray()
        if self.has_alpha:
            alpha = _reformat(frame, "rgba", **size).to_ndarray()[..., 3:]
            pixels = np.asarray(on_white(Image.fromarray(np.concatenate([pixels, alpha], axis=-1))))
        transposed, upside_down, mirrored = self.flips
        if transposed:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


def on_white(image: Image.Image) -> Image.Image:
    """RGB of an image that may be transparent."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def deinterlaced(frames: Iterator[Any], time_base: Fraction) -> Iterator[Any]:
    """The same frames with both half pictures at the time of the first one. Each needs its neighbours, so that none
    may be left out. Frames that say they aren't interlaced stay as they are.
    """
    first = next(frames, None)
    if first is None or first.format.is_rgb or first.format.name == "pal8":  # no such video is interlaced
        yield from filter(None, itertools.chain([first], frames))
        return
    graph: Any = av.filter.Graph()
    size = {"width": first.width, "height": first.height}
    source = graph.add_buffer(format=first.format, time_base=time_base, **size)
    work, result = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    source.link_to(work)
    work.link_to(result)
    graph.configure()
    for frame in itertools.chain([first], frames, [None]):  # None: the end
        source.push(frame)
        while True:
            try:
                finished = result.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            if finished.pts is not None:  # the filter counts half pictures
                finished.pts = round(finished.pts * finished.time_base / time_base)
            yield finished


def _reformat(frame: Any, name: str, **arguments: Any) -> Any:
    # One thread: PyAV would start as many for every frame as the machine has cores.
    return frame.reformat(format=name, threads=1, **arguments)


def _matrix(frame: Any) -> int | None:
    if frame.format.is_rgb or frame.colorspace not in _UNSPECIFIED:
        return None
    if colours.needs_conversion(frame.color_trc, frame.color_primaries):
        return _MATRIX_BT709 if frame.color_primaries == colours.DISPLAY_P3 else _MATRIX_BT2020
    return _MATRIX_BT709 if frame.width >= 1280 or frame.height > 576 else None


def _square_pixels(path: str, stored: tuple[int, int], aspect: Fraction | None) -> tuple[int, int]:
    """Height and width; no side becomes shorter than it is stored."""
    if not aspect:
        return stored
    if not 1 / _LARGEST_ASPECT <= aspect <= _LARGEST_ASPECT:
        raise DataError(
            f"{path}: the file says that its pixels are {aspect.numerator}:{aspect.denominator} wide to high; "
            f"it has to be between 1:{_LARGEST_ASPECT} and {_LARGEST_ASPECT}:1"
        )
    height, width = stored
    square = (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)
    # Sizes that don't divide come with aspects such as 1280:1281. One pixel isn't worth the loss of scaling.
    return stored if abs(square[0] - height) <= 1 and abs(square[1] - width) <= 1 else square


def _flips(path: str, frame: Any) -> tuple[bool, bool, bool]:
    """See Picture.flips."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # Where a pixel is shown: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, crossed) > 0.02 * max(straight, crossed):
        raise DataError(f"{path}: is to be turned by an angle that is no multiple of 90 degrees; encode it again")
    return (True, b < 0, c < 0) if crossed > straight else (False, d < 0, a < 0)
