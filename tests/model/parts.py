"""What the tests of this room share: configurations, models and batches of the tiny family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tiny
import torch
from cogvideox.config.schema import ModelConfig
from cogvideox.data.plans import StreamPosition
from cogvideox.data.rows import ClipBatch, Rows
from cogvideox.geometry import Bucket
from cogvideox.model.build import build_model
from cogvideox.model.video_diffusion import VideoDiffusion

CAPTIONS = ("a red square moves left", "a blue square moves up", "a white square moves down")


def model_config(
    paths: tiny.TinyFamily, lora: dict[str, Any] | None = None, *, family: str = "2b", **keys: Any
) -> ModelConfig:
    """The `model` section of a family, with the VAE and text encoder of `paths`; `keys` replace flat keys or
    components."""
    return ModelConfig(**{**tiny.model_section(paths, lora, family), **keys})


def build(
    paths: tiny.TinyFamily,
    lora: dict[str, Any] | None = None,
    *,
    randomise: bool = True,
    family: str = "2b",
    **keys: Any,
) -> VideoDiffusion:
    """A model in fp32 on the CPU, by default with all transformer weights random and non-zero."""
    config = model_config(paths, lora, family=family, **keys)
    model = build_model(config, device="cpu", dtype=torch.float32, seed=7)
    if randomise:
        tiny.randomise(model.transformer, seed=4)
    return model


def batch(rows: slice = slice(0, 3), epoch: int = 0) -> ClipBatch:
    """Rows of one fixed global batch of three clips."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, tiny.FRAMES, 3, tiny.HEIGHT, tiny.WIDTH)
    video = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)[rows]
    count = len(video)
    described = Rows(
        captions=CAPTIONS[rows],
        sample_ids=torch.tensor([11, 2**62, 13])[rows],
        epochs=torch.full((count,), epoch),
        positions=torch.arange(30, 33)[rows],
        counted=torch.ones(count, dtype=torch.bool),
        sources=("a.mp4", "b.mp4", "c.mp4")[rows],
        bucket=Bucket(tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH),
        after=StreamPosition(33),
    )
    return ClipBatch(described, video, video[:, 0])


def cut(batch: ClipBatch, frames: int) -> ClipBatch:
    """The first frames of the clips."""
    rows = replace(batch.rows, bucket=batch.rows.bucket._replace(frames=frames))
    return ClipBatch(rows, batch.video[:, :frames], batch.first_frame)
