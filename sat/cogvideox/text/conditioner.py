"""From captions to the context that the transformer sees, with caption dropout for classifier-free guidance.

Letters: b batch, l text tokens, e text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cogvideox.errors import ConfigError

if TYPE_CHECKING:
    from cogvideox.text.contexts import ContextFile
    from cogvideox.text.encoders import T5Encoder


@dataclass(frozen=True)
class ContextSizes:
    """What stands in for a text encoder where all contexts are there already: max_length is l, width is e."""

    max_length: int
    width: int


class Conditioner(nn.Module):
    """A text encoder and the probability with which training replaces a caption's context by zeros.

    With `remember`, contexts of known captions are computed once; when all of them are, `free` gives the encoder up.

    encoder: T5Encoder, or any module with its methods; ContextSizes where only remembered contexts will be asked for.
    caption_dropout: 0.1 in the published models.
    Raises: ConfigError for a dropout outside [0, 1].
    """

    def __init__(self, encoder: object, caption_dropout: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= caption_dropout <= 1.0:
            raise ConfigError(f"conditioner: caption_dropout is {caption_dropout}, must be between 0 and 1")
        self._sizes = encoder if isinstance(encoder, ContextSizes) else None
        self.encoder: T5Encoder = encoder if self._sizes is None else None  # type: ignore[assignment]
        self.caption_dropout = caption_dropout
        self._remembered: ContextFile | None = None

    @property
    def width(self) -> int:
        """e, the width of the context."""
        return self.encoder.width if self._sizes is None else self._sizes.width

    @property
    def max_length(self) -> int:
        """l, the number of text tokens."""
        return self.encoder.max_length if self._sizes is None else self._sizes.max_length

    def encode(self, captions: Sequence[str], keep: Tensor | None = None, device: torch.device | None = None) -> Tensor:
        """captions (b of them), keep bool [b] -> context [b, l, e]; where keep is False the context is zeros.

        Zeros, not the encoding of "": that is what the released models were trained with.
        device: where the context goes; None leaves it where the encoder is, or remembered ones on the CPU.
        """
        context = self._contexts(captions, pin=device is not None and device.type == "cuda")
        if device is not None:
            context = context.to(device, non_blocking=True)
        if keep is None:
            return context
        dropped = ~keep.to(context.device, non_blocking=True)
        return context.masked_fill(dropped[:, None, None], 0.0)

    def _contexts(self, captions: Sequence[str], *, pin: bool) -> Tensor:
        remembered = self._remembered
        if remembered is None or not all(caption in remembered for caption in captions):
            assert self.encoder is not None, f"the text encoder was given up before it has seen all of {captions}"
            return self.encoder(captions)
        for caption in captions:
            self.encode_once(caption)
        return remembered.read(captions, pin=pin)

    def remember(self, contexts: ContextFile) -> None:
        """Take the contexts of these captions from there. One that isn't there yet is computed when it comes, alone:
        what it is never depends on the captions beside it."""
        self._remembered = contexts

    def encode_once(self, caption: str) -> None:
        """Compute and remember the context of one of the captions of `remember`, unless that has been done."""
        assert self._remembered is not None, "nothing is remembered"
        self._remembered.fill(caption, partial(self._encode_alone, caption))

    def _encode_alone(self, caption: str) -> Tensor:
        assert self.encoder is not None, f"the text encoder was given up before it has seen {caption!r}"
        return self.encoder([caption])[0]

    def null_context(self, batch: int, like: Tensor) -> Tensor:
        """The unconditional twin of a context: zeros [batch, l, e] with the dtype and device of `like` [*, l,
        e]."""
        return torch.zeros(batch, *like.shape[1:], dtype=like.dtype, device=like.device)

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before cutting; those above max_length lose their end."""
        return self.encoder.count_tokens(captions)

    def free(self) -> None:
        """Give the encoder's memory back, where everything is encoded: from here on there are only contexts that are
        remembered, and `null_context`."""
        self.encoder = None  # type: ignore[assignment]

    def move(self, device: torch.device | str, dtype: torch.dtype) -> Conditioner:
        """Move and cast the encoder, if it is still there."""
        if self.encoder is not None:
            self.encoder.move(device, dtype)
        return self
