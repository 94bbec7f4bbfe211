"""Notes when captions are encoded, when the transformer gets memory and when it runs, in this process."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from cogvideox.text.encoders import T5Encoder
from cogvideox.transformer.model import DiffusionTransformer


class EncoderWatch:
    """`events` in order, and the `captions` that were encoded. For transformers whose weights follow."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.captions: list[str] = []
        transformers: list[Any] = []
        encoders: list[Any] = []
        built, empty, step = (getattr(DiffusionTransformer, each) for each in ("__init__", "to_empty", "forward"))
        encode = T5Encoder.forward

        def build(module: Any, *given: Any, **more: Any) -> None:
            built(module, *given, **more)
            transformers.append(weakref.ref(module))

        def to_text(module: Any, captions: list[str]) -> torch.Tensor:
            encoders.append(weakref.ref(module))
            self.captions.extend(captions)
            (device,) = {each.device.type for each in transformers[-1]().parameters()}
            self.events.append(f"text of {len(captions)}, transformer on {device}")
            return encode(module, captions)

        def materialise(module: Any, **more: Any) -> Any:
            is_gone = bool(encoders) and all(each() is None for each in encoders)
            self.events.append("transformer gets memory" + (", encoder gone" if is_gone else ""))
            return empty(module, **more)

        def run(module: Any, *given: Any, **more: Any) -> torch.Tensor:
            self.events.append("transformer")
            return step(module, *given, **more)

        patch.setattr(DiffusionTransformer, "__init__", build)
        patch.setattr(DiffusionTransformer, "to_empty", materialise)
        patch.setattr(DiffusionTransformer, "forward", run)
        patch.setattr(T5Encoder, "forward", to_text)
