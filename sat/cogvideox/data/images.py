"""Image files, for training on single frames and as the images of image-to-video models.

Letters: h w pixels, c = 3 colours (RGB).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cogvideox.data.decode import ClipInfo, DecodedFrames, FrameChooser
from cogvideox.data.media import Media
from cogvideox.data.picture import on_white
from cogvideox.errors import DataError

_ONE_FRAME = np.zeros(1)  # timestamps
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class ImageReader:
    """Reads an image file as a video of one frame."""

    name = "pillow"

    def probe(self, media: Media) -> ClipInfo:
        """The size as shown, from decoding the file (JPEG at an eighth of its size): nothing less shows that it is
        whole. Raises: DataError."""
        with _open(media) as image:
            width, height = image.size
            if image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE:
                width, height = height, width
            image.draft("RGB", (1, 1))
            image.load()
        return ClipInfo(width, height, _ONE_FRAME)

    def read(self, media: Media, choose: FrameChooser) -> DecodedFrames:
        """The image. Raises: DataError."""
        return DecodedFrames(read_image(media)[None], choose(_ONE_FRAME), self.name)


def read_image(media: Media) -> NDArray[np.uint8]:
    """uint8 [h, w, c] as a viewer shows it: turned as its EXIF data says, transparent parts white, the first image
    of an animation.

    Raises: DataError that names the file when it is missing, no image, truncated, or of unusual sample values.
    """
    with _open(media) as image:
        return np.array(_to_rgb(ImageOps.exif_transpose(image)))


@contextmanager
def _open(media: Media) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet; Pillow's and the file system's errors become DataErrors."""
    name = media.label
    media.check()
    try:
        with media.open_bytes() as file, Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: can't be read as an image: not of a known format") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise DataError(f"{name}: can't be read as an image: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, on white where it is transparent. Raises: ValueError."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its samples are {'32-bit integers' if image.mode == 'I' else 'floats'}; save it with 8 bits")
    return on_white(image) if image.has_transparency_data else image.convert("RGB")
