"""A reader that also knows where a video cuts from one scene to another."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cogvideox.data.decode import ClipInfo, DecodedFrames, FrameChooser, VideoReader, small_frames
from cogvideox.data.media import Media
from cogvideox.data.scenes import SIDE, find_cuts


@dataclass(frozen=True)
class SceneReader:
    """Reads as `reader` does. To find cuts, a video is decoded whole, which takes as long as reading all of it."""

    reader: VideoReader

    @property
    def name(self) -> str:
        """Of the reader."""
        return self.reader.name

    def probe(self, media: Media) -> ClipInfo:
        """With the cuts. Raises: DataError for a file that can't be decoded to its end."""
        return replace(self.reader.probe(media), cuts=find_cuts(small_frames(media, SIDE)))

    def read(self, media: Media, choose: FrameChooser) -> DecodedFrames:
        """See VideoReader.read."""
        return self.reader.read(media, choose)
