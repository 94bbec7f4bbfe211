"""Where the bytes of a video or an image lie: in a file of their own, or inside a larger one (tar, Arrow). No torch."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, NamedTuple

from cogvideox.errors import DataError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".gif"),
    *(".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".wmv", ".ogv"),
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Media(NamedTuple):
    """A video or an image. A tuple, because there may be a million, and each is looked up several times.

    Args:
        path: the file.
        offset: where in the file its bytes begin.
        num_bytes: how many they are; None: the whole file.
        name: of a part, the name that it has inside the file, with its suffix; "" for a whole file.
    """

    path: str
    offset: int = 0
    num_bytes: int | None = None
    name: str = ""

    @property
    def is_part(self) -> bool:
        """Whether its bytes are a part of a larger file."""
        return self.num_bytes is not None

    @property
    def url(self) -> str:
        """What libav opens."""
        # Before the first slash, a colon would make the words before it a protocol.
        path = f"./{self.path}" if ":" in self.path.split("/", 1)[0] else self.path
        if self.num_bytes is None:
            return path
        return f"subfile,,start,{self.offset},end,{self.offset + self.num_bytes},,:{path}"

    @property
    def label(self) -> str:
        """The file as messages name it: `clip.mp4`, or `shard.tar:clip.mp4`."""
        return f"{self.path}:{self.name or self.offset}" if self.is_part else self.path

    @property
    def suffix(self) -> str:
        """In small letters, with its dot."""
        return suffix_of(self.name or self.path)

    @property
    def is_image(self) -> bool:
        """Whether the name is an image's."""
        return self.suffix in IMAGE_SUFFIXES

    def check(self) -> int:
        """How many bytes there are. Raises: DataError for a missing or empty file, and one that is cut short."""
        if not os.path.isfile(self.path):
            raise DataError(f"{self.label}: is not a file")
        size = os.path.getsize(self.path)
        if self.num_bytes is None:
            num_bytes = size
        elif self.offset + self.num_bytes > size:
            end = self.offset + self.num_bytes
            raise DataError(f"{self.label}: {self.path} is cut short: it has {size} bytes of at least {end}")
        else:
            num_bytes = self.num_bytes
        if num_bytes == 0:
            raise DataError(f"{self.label}: is empty (0 bytes)")
        return num_bytes

    def open_bytes(self) -> BinaryIO:
        """Just these bytes, for Pillow; a part is read into memory. Raises: OSError."""
        if self.num_bytes is None:
            return open(self.path, "rb")
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.num_bytes))


def suffix_of(name: str) -> str:
    """The end of a file's name from its last dot, in small letters."""
    return os.path.splitext(name)[1].lower()
