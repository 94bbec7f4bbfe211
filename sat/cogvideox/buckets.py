"""Which shapes clips are trained at, and which of them a clip takes. Pure arithmetic, as in geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cogvideox.geometry import Bucket, Geometry

VARY = ("none", "size", "frames", "both")
MAX_BUCKETS = 1024
# Width to height, of the videos that people have: phones upright, portraits, squares, old and new screens, cinema.
ASPECT_RATIOS = (9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 21 / 9)
# Shares of a picture that differ by less are one to the eye.
_SAME_SHARE = 0.01
# Sizes that keep nearly the same ratio cut off less than _SAME_SHARE each, so two of them differ by less than this.
_SAME_RATIO = 2 * _SAME_SHARE


def micro_batch_size(num_video_tokens: int, budget: int | None, micro: int) -> int:
    """Clips of a bucket in a micro batch: as many as a budget of video tokens allows, at least one; without a budget
    `micro` of every bucket."""
    return micro if budget is None else max(1, budget // num_video_tokens)


@dataclass(frozen=True)
class Fit:
    """How a clip goes into a bucket.

    kept_share: part of the picture's area that the crop keeps, above 0 and at most 1; enlargement: result pixels per
    source pixel and side, below 1 where the clip is reduced.
    """

    kept_share: float
    enlargement: float

    @classmethod
    def of(cls, source: tuple[float, float], size: tuple[int, int]) -> Fit:
        """Both (height, width)."""
        enlargement = max(size[0] / source[0], size[1] / source[1])
        return cls(size[0] * size[1] / (enlargement**2 * source[0] * source[1]), enlargement)


@dataclass(frozen=True)
class Buckets:
    """The shapes of a run.

    Args:
        shapes: at least one, each legal for the model, at most MAX_BUCKETS.
        max_upscale: by how much a clip may be enlarged on each side; None: without limit.
        vary: what is drawn anew for a sample in every epoch, among the shapes that suit it: "none", its "size", its
            number of "frames", or "both".
        shorten: a clip that has fewer frames than a shape gets the shape with the longest legal number that it has.
    """

    shapes: tuple[Bucket, ...]
    max_upscale: float | None = None
    vary: str = "none"
    shorten: Geometry | None = None

    def choices(self, size: tuple[int, int], frames: int) -> tuple[Bucket, ...]:
        """The shapes that suit a clip, the best first; empty where it has too few frames or pixels for any.

        Of those that need no more frames than it has and don't enlarge it beyond the limit, the ones that cut off
        least; of these the ones with most frames, then with most pixels. What may vary gives further ones, of nearly
        the same aspect ratio.

        Args:
            size: (height, width) of the clip as shown; frames: that it has at the rate of the run.
        """
        key = (size, min(frames, self._most_frames))
        if key not in self._known:
            self._known[key] = self._choose(*key)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[tuple[int, int], int], tuple[Bucket, ...]]:
        """What `choices` has found: many clips have the same size."""
        return {}

    @cached_property
    def _most_frames(self) -> int:
        return max(shape.frames for shape in self.shapes)

    def _choose(self, size: tuple[int, int], frames: int) -> tuple[Bucket, ...]:
        fits = {shape: Fit.of(size, shape[1:]) for shape in self._shapes_for(frames)}
        limit = math.inf if self.max_upscale is None else self.max_upscale * (1 + 1e-9)
        legal = [shape for shape, fit in fits.items() if shape.frames <= frames and fit.enlargement <= limit]
        if not legal:
            return ()
        most_kept = max(fits[shape].kept_share for shape in legal)
        good = [shape for shape in legal if fits[shape].kept_share >= most_kept - _SAME_SHARE]
        best = max(good, key=lambda shape: (shape.frames, shape.height * shape.width, fits[shape].kept_share))
        others = [
            shape
            for shape in legal
            if shape != best
            and fits[shape].kept_share >= most_kept - _SAME_RATIO
            and (shape.frames == best.frames or self.vary in ("frames", "both"))
            and (shape[1:] == best[1:] or self.vary in ("size", "both"))
        ]
        return (best, *sorted(others))

    def why_none(self, size: tuple[int, int], frames: int) -> str:
        """Why a clip has no choice, for people; `choices` gave none."""
        fewest = min(shape.frames for shape in self._shapes_for(frames))
        if frames < fewest:
            return f"it has {frames} frames at this rate; the shortest bucket takes {fewest}"
        least = min(Fit.of(size, shape[1:]).enlargement for shape in self.shapes if shape.frames <= frames)
        return f"{size[0]} x {size[1]} pixels would be enlarged {least:.2f} times; max_upscale is {self.max_upscale:g}"

    def _shapes_for(self, frames: int) -> tuple[Bucket, ...]:
        if self.shorten is None:
            return self.shapes
        longest = self.shorten.longest_frames(frames)
        if longest == 0:
            return self.shapes
        return tuple({shape._replace(frames=min(shape.frames, longest)): None for shape in self.shapes})


def generate(
    geometry: Geometry,
    frames: Sequence[int],
    aspect_ratios: Sequence[float] = ASPECT_RATIOS,
    *,
    tokens: int | None = None,
    pixels: int | None = None,
    at_least: int | None = None,
    step: int | None = None,
    largest: tuple[int, int] | None = None,
) -> tuple[Bucket, ...]:
    """Shapes of about one cost: for every frame count and aspect ratio the largest one within the budget. With
    `at_least` one for every length of the shorter side from there up to the budget, where nearly that ratio is legal.

    Args:
        frames: legal numbers of pixel frames.
        aspect_ratios: width to height.
        tokens: video tokens that a clip may have at most; or pixels: height times width at most.
        at_least: the smallest number of the same unit.
        step: what height and width are multiples of, itself a multiple of what is legal; None: the smallest legal.
        largest: (height, width) that may not be exceeded, None where there is no limit.

    Returns: in order, each once; none where nothing within the budget is legal.
    """
    assert (tokens is None) != (pixels is None), "one budget"
    step = step or max(geometry.size_multiple)
    found: dict[Bucket, None] = {}
    for count in frames:
        per_frame = geometry.token_grid(geometry.latent_frames(count), 0, 0)[0]
        unit = 1.0 if pixels is not None else math.prod(geometry.size_multiple) / per_frame
        area = (pixels or tokens or 0) * unit
        for ratio in aspect_ratios:
            if at_least is not None:
                sizes = _sizes_between(at_least * unit, area, ratio, step, largest)
            else:
                size = _largest_size(area, ratio, step, largest)
                sizes = [] if size is None else [size]
            found.update(dict.fromkeys(Bucket(count, *size) for size in sizes))
    return tuple(sorted(found))


def _sizes_between(
    least: float, most: float, ratio: float, step: int, largest: tuple[int, int] | None
) -> list[tuple[int, int]]:
    """For every length of the shorter side the (height, width) in multiples of `step` that comes nearest to a ratio,
    between two areas, both included. Those that miss it by 1 % are left out, unless all do."""
    slack, long = 1 + 1e-9, max(ratio, 1 / ratio)  # longer to shorter side
    options: dict[tuple[int, int], float] = {}
    first = max(1, math.floor(math.sqrt(least / long) / step) - 1) * step
    last = math.floor(min(math.sqrt(most / long) + step, min(largest) if largest else math.inf))
    for shorter in range(first, last + 1, step):
        sides = (shorter, max(shorter, round(shorter * long / step) * step))
        size = sides if ratio >= 1 else sides[::-1]
        is_within = least / slack <= math.prod(size) <= most * slack
        if is_within and (largest is None or (size[0] <= largest[0] and size[1] <= largest[1])):
            options[size] = Fit.of((1, ratio), size).kept_share
        if len(options) > 4 * MAX_BUCKETS:
            break  # far too many, as the caller will say
    near = [size for size, kept in options.items() if kept >= 1 - _SAME_SHARE]
    return near or ([max(options, key=lambda size: (options[size], size))] if options else [])


def _largest_size(area: float, ratio: float, step: int, largest: tuple[int, int] | None) -> tuple[int, int] | None:
    """The (height, width) in multiples of `step` within an area whose shape is nearest to a ratio, and of these
    nearly as large as possible."""
    ideal = (math.sqrt(area / ratio), math.sqrt(area * ratio))
    if largest is not None:
        shrink = min(1.0, *(most / side for most, side in zip(largest, ideal, strict=True)))
        ideal = (ideal[0] * shrink, ideal[1] * shrink)
        area = min(area, ideal[0] * ideal[1] * (1 + 1e-9)) if shrink < 1 else area
    heights = {max(1, math.floor(ideal[0] / step) + more) * step for more in (0, 1)}
    options = []
    for height in heights:
        for width in {max(1, math.floor(ideal[1] / step) + more) * step for more in (0, 1)}:
            fits = largest is None or (height <= largest[0] and width <= largest[1])
            if height * width <= area * (1 + 1e-9) and fits:
                options.append((height, width))
    if not options:
        return None
    shape = (1000, round(1000 * ratio))
    return max(options, key=lambda size: Fit.of(shape, size).kept_share * size[0] * size[1])
