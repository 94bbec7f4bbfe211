"""A batch: what a step has to know of its samples, and what stands in its rows.

Letters: b batch, t frames, c colours, h w pixels; f latent frames, z latent channels, y x latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from cogvideox.data.plans import StreamPosition
from cogvideox.geometry import Bucket

Drawn = TypeVar("Drawn")


@dataclass(frozen=True, eq=False)
class Rows:
    """One process's rows of a global batch, whatever they hold.

    Args:
        sample_ids: int64 [b].
        epochs: int64 [b]; how often each sample was there before: its epoch, where all sources are seen once per
            epoch. A batch may straddle epochs. Randomness of a row is a function of (seed, its epoch, its sample id).
        positions: int64 [b]; place of each row in the endless stream of all samples of a run.
        counted: bool [b]; all True in training. False for rows of evaluation batches that only fill them up.
        captions: b texts.
        sources: b files, for messages.
        bucket: frames, height and width of every row.
        after: where the run is when all processes have this batch; where training resumes.
    """

    sample_ids: Tensor
    epochs: Tensor
    positions: Tensor
    counted: Tensor
    captions: tuple[str, ...]
    sources: tuple[str, ...]
    bucket: Bucket
    after: StreamPosition

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def epoch(self) -> int:
        """Epoch of the first row, for display."""
        return int(self.epochs[0])


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """Clips, read and decoded.

    video: uint8 [b, t, c, h, w], 0 to 255. first_frame: uint8 [b, c, h, w], the image that an image-to-video model
    continues: the video's own first frame, or another image.
    """

    rows: Rows
    video: Tensor
    first_frame: Tensor

    def to(self, device: torch.device | str) -> ClipBatch:
        """With the video on a device; pinned memory is copied without waiting. The image is fetched when it is used."""
        return replace(self, video=self.video.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """What the VAE made of clips, read from a cache: the moments of its posterior, unscaled.

    Args:
        mean, log_variance: fp32 [b, f, z, y, x], real latents (see model.frame_padding).
        first_frame: uint8 [b, c, h, w], the image that an image-to-video model continues; None for other models.
    """

    rows: Rows
    mean: Tensor
    log_variance: Tensor
    first_frame: Tensor | None = None

    def to(self, device: torch.device | str) -> LatentBatch:
        """With its tensors on a device; pinned memory is copied without waiting."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in ("mean", "log_variance", "first_frame")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)


Batch = ClipBatch | LatentBatch


@dataclass(frozen=True, eq=False)
class DrawnBatch:
    """A batch whose randomness is being drawn, or is there already: see Drawing."""

    batch: Batch
    randomness: Future[Any]

    @property
    def rows(self) -> Rows:
        return self.batch.rows


AnyBatch = Batch | DrawnBatch


class Drawing:
    """Draws the randomness of batches in a thread, as soon as they are read: 157 ms for a clip of 81x768x1360.

    One batch after the other, so that of many micro batches the first can be computed with while others are drawn.
    draw: a function of a batch's rows that may run in another thread than the model.
    """

    def __init__(self, draw: Callable[[Rows], Any]) -> None:
        self._draw = draw
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")

    def begin(self, batch: Batch) -> DrawnBatch:
        """The batch with what `draw` will give for it."""
        return DrawnBatch(batch, self._thread.submit(self._draw, batch.rows))

    def close(self) -> None:
        """End the thread once it has drawn for all batches that it was given. Waits for nothing."""
        self._thread.shutdown(wait=False)


def drawn(batch: AnyBatch, draw: Callable[[Rows], Drawn]) -> tuple[Batch, Drawn]:
    """A batch and its randomness: what was drawn beside, waiting for it if need be; else what `draw` gives now."""
    if isinstance(batch, DrawnBatch):
        return batch.batch, batch.randomness.result()
    return batch, draw(batch.rows)
