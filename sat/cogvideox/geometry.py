"""Frame and size arithmetic of a clip: pixels, latents, patches and tokens, and the words that say what is legal.

    pixel frames   --VAE-->   latent frames   --padding-->   padded latent frames   --patches-->   tokens

Numbers go in, numbers and texts come out: nothing is built and nothing heavy is imported, so the check of a
configuration, the data, the networks and the tools all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Bucket(NamedTuple):
    """What a clip is trained at: pixel frames, and height and width in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Geometry:
    """How pixels become tokens.

    temporal_compression: pixel frames of a latent frame; the first pixel frame has a latent frame of its own.
    spatial_compression: pixels of a latent pixel, on each side. patch_size: latents of a token along (frames, height,
    width). Sizes are (height, width) everywhere.

    With patches of p > 1 latent frames (CogVideoX1.5: 2), p - 1 copies of the first latent frame stand in front of a
    clip as padding, so that patches of 2 take odd numbers of latent frames, at least 3. The defaults are those of 1.0.
    """

    temporal_compression: int = 4
    spatial_compression: int = 8
    patch_size: tuple[int, int, int] = (1, 2, 2)

    @property
    def least_latent_frames(self) -> int:
        """The shortest clip: one latent frame; where patches hold two, three, since 1.5 was not trained on images."""
        deep = self.patch_size[0]
        return 1 if deep == 1 else deep + 1

    # -- frames ----------------------------------------------------------------------------------------------------

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a legal number of pixel frames: 49 have 13."""
        return (frames - 1) // self.temporal_compression + 1

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of so many latent frames, without padding: 13 have 49."""
        return (latent_frames - 1) * self.temporal_compression + 1

    def padded_frames(self, latent_frames: int) -> int:
        """Latent frames that the network sees of so many real ones: 21 are 22 where patches hold 2."""
        return latent_frames + self.patch_size[0] - 1

    def real_frames(self, padded_frames: int) -> int:
        """Latent frames without their padding. A number that patches don't divide has none: 22 and 21 are both 21."""
        deep = self.patch_size[0]
        return padded_frames - (deep - 1) if padded_frames % deep == 0 else padded_frames

    def frames_problem(self, frames: int) -> str:
        """What is wrong with a number of pixel frames, as the end of a sentence; empty when nothing is."""
        deep = self.patch_size[0]
        step, smallest = self.temporal_compression * deep, self.pixel_frames(self.least_latent_frames)
        if frames >= smallest and (frames - 1) % step == 0:
            return ""
        nearest = _either(_around(frames, step, smallest, offset=1))
        if deep > 1 and frames == 1:
            return f"can't be 1: one frame does not fill a patch of {deep} latent frames; nearest: {nearest}"
        why = f" because patches hold {deep} latent frames" if deep > 1 else ""
        return f"must be {step}k + 1{why}, not {frames}; nearest: {nearest}"

    def longest_frames(self, available: int) -> int:
        """The largest legal number of pixel frames that is at most `available`; 0 where there is none."""
        step, smallest = self.temporal_compression * self.patch_size[0], self.pixel_frames(self.least_latent_frames)
        return 0 if available < smallest else (available - 1) // step * step + 1

    def latent_frames_problem(self, latent_frames: int) -> str:
        """The same of a number of real latent frames."""
        deep, smallest = self.patch_size[0], self.least_latent_frames
        if latent_frames >= smallest and (latent_frames - 1) % deep == 0:
            return ""
        nearest = _either(_around(latent_frames, deep, smallest, offset=1))
        if deep == 1:
            return f"must be at least 1, not {latent_frames}"
        return f"must be {deep}k + 1 because patches hold {deep} of them, not {latent_frames}; nearest: {nearest}"

    # -- sizes -----------------------------------------------------------------------------------------------------

    @property
    def size_multiple(self) -> tuple[int, int]:
        """What (height, width) in pixels must be multiples of."""
        _, height, width = self.patch_size
        return self.spatial_compression * height, self.spatial_compression * width

    def size_problem(self, size: Sequence[int]) -> str:
        """What is wrong with (height, width) in pixels, as the end of a sentence; empty when nothing is."""
        multiple = self.size_multiple
        if all(side >= step and side % step == 0 for side, step in zip(size, multiple, strict=True)):
            return ""
        steps = f"{multiple[0]}" if multiple[0] == multiple[1] else f"{multiple[0]} and {multiple[1]}"
        return f"must be multiples of {steps}, not {list(size)}; nearest: {list(self.nearest_size(size))}"

    def nearest_size(self, size: Iterable[float]) -> tuple[int, int]:
        """The legal (height, width) nearest to any one."""
        height, width = (
            max(step, round(side / step) * step) for side, step in zip(size, self.size_multiple, strict=True)
        )
        return height, width

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in latents of one in pixels."""
        return height // self.spatial_compression, width // self.spatial_compression

    # -- tokens ----------------------------------------------------------------------------------------------------

    def token_grid(self, latent_frames: int, latent_height: int, latent_width: int) -> tuple[int, int, int]:
        """Tokens along (frames, height, width) of real latents. Legal ones only, or the frames of a table that is no
        whole number of patches: 21 are 11 tokens of 2 frames, as 22 with the padding are."""
        frames, height, width = self.patch_size
        return -(-latent_frames // frames), latent_height // height, latent_width // width

    def num_video_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens of a clip of so many pixel frames of height x width pixels."""
        y, x = self.latent_size(height, width)
        grid = self.token_grid(self.latent_frames(frames), y, x)
        return grid[0] * grid[1] * grid[2]


def multiple_problem(value: int, step: int) -> str:
    """What is wrong with a number that must be a positive multiple; empty when nothing is."""
    if value >= step and value % step == 0:
        return ""
    return f"must be a multiple of {step}, not {value}; nearest: {_either(_around(value, step, step))}"


def _around(value: int, step: int, smallest: int, offset: int = 0) -> list[int]:
    """The numbers step * k + offset, at least `smallest`, on both sides of an illegal value."""
    below = (value - offset) // step * step + offset
    return [each for each in (below, below + step) if each >= smallest] or [smallest]


def _either(values: Iterable[int]) -> str:
    return " or ".join(map(str, values))
