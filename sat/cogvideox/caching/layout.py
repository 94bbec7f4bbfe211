"""What a cache holds of clips and captions, in numbers: which entries, of which shapes. No torch.

Letters: f latent frames, z latent channels, y x latent height and width; c = 3 colours, h w pixels; l text tokens,
e text width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.order import SampleIds
from cogvideox.geometry import Bucket, Geometry

FIRST_FRAME = "first_frame"  # the one tensor of bytes; all others are numbers of the dtype that is stored


@dataclass(frozen=True)
class LatentLayout:
    """What an entry of a clip holds.

    Args:
        geometry, channels: of the latents.
        with_first_frame: for image-to-video, where noise is put on its pixels in every epoch.
    """

    geometry: Geometry
    channels: int
    with_first_frame: bool

    def shapes(self, bucket: Bucket) -> dict[str, tuple[int, ...]]:
        """Mean and log-variance, f z y x, and the first frame, c h w."""
        size = self.geometry.latent_size(bucket.height, bucket.width)
        moments = (self.geometry.latent_frames(bucket.frames), self.channels, *size)
        found: dict[str, tuple[int, ...]] = {"mean": moments, "log_variance": moments}
        if self.with_first_frame:
            found[FIRST_FRAME] = (3, bucket.height, bucket.width)
        return found

    def num_bytes(self, bucket: Bucket, bytes_per_number: int) -> int:
        """Of the tensors of an entry; what says which clip it is comes on top, less than 1 kB."""
        return sum(
            math.prod(shape) * (1 if name == FIRST_FRAME else bytes_per_number)
            for name, shape in self.shapes(bucket).items()
        )


def context_bytes(shape: tuple[int, int], bytes_per_number: int) -> int:
    """Of the context of a caption. shape: l e; the padding is stored too, since the text encoder has no mask."""
    return math.prod(shape) * bytes_per_number


def views_of(
    plan: BucketPlan, ids: SampleIds, *, seed: int, views: int | None, varies: bool, for_evaluation: bool = False
) -> Iterator[list[tuple[Bucket, int]]]:
    """(bucket, view) of every entry that a clip has, for each sample in order.

    Args:
        plan: buckets of the samples; ids: int64 [n], theirs.
        views: draws of each clip's start and bucket that are stored; None: one start, and every bucket that the
            clip may be drawn for.
        varies: whether starts are drawn.
        for_evaluation: each clip in its own bucket alone.
    """
    count = views or 1
    starts = range(count if varies else 1)
    drawn = None if views is None or for_evaluation else [plan.drawn_at(view, ids, seed) for view in range(views)]
    for index in range(len(ids)):
        if drawn is not None:
            wanted = [(plan.shapes[int(each[index])], view % len(starts)) for view, each in enumerate(drawn)]
        else:
            may = plan.of(index)
            wanted = [(bucket, start) for bucket in (may[:1] if for_evaluation else may) for start in starts]
        yield list(dict.fromkeys(wanted))
