"""Captions to contexts before the transformer gets its memory: on the device it never meets the text encoder (T5-XXL
takes 8.9 GiB in bf16)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from cogvideox import stopping
from cogvideox.config.schema import ModelConfig
from cogvideox.log import get_logger
from cogvideox.model.build import place_text_encoder
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.text.conditioner import Conditioner
from cogvideox.text.contexts import own_context_file

_log = get_logger(__name__)
_SAY_EVERY_S = 30.0


def encode_prompts(
    model: VideoDiffusion, config: ModelConfig, prompts: Sequence[str], device: torch.device, dtype: torch.dtype
) -> None:
    """Encode all prompts of this process on a device, and give the text encoder up.

    model: a draft (see model.build). Raises: CheckpointError for NaN or infinity in the text encoder; DataError where
    the contexts find no place; Stopped.
    """
    conditioner = model.conditioner
    conditioner.remember(own_context_file(prompts, context_shape(conditioner), dtype))
    if prompts:
        place_text_encoder(model, config, device, dtype)
        encode_each(conditioner, list(dict.fromkeys(prompts)))
    give_up_encoder(conditioner)


def context_shape(conditioner: Conditioner) -> tuple[int, int]:
    """(l, e) of one context."""
    return conditioner.max_length, conditioner.width


def encode_each(conditioner: Conditioner, captions: Sequence[str]) -> None:
    """Encode and remember captions one by one, and say now and then how far it is. Raises: Stopped."""
    started = said = time.monotonic()
    for done, caption in enumerate(captions):
        stopping.check()
        now = time.monotonic()
        if now - said >= _SAY_EVERY_S:
            said = now
            _log.info("%d of %d captions encoded, %.1f per second", done, len(captions), done / (now - started))
        conditioner.encode_once(caption)


def give_up_encoder(conditioner: Conditioner) -> None:
    """End the text encoder, and let other programs and other sizes of tensors have its place on the device."""
    conditioner.free()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
