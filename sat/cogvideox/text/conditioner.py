"""From captions to the context that the transformer sees, with caption dropout for classifier-free guidance.

Letters: b batch, l text tokens, e text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cogvideox.errors import ConfigError

if TYPE_CHECKING:
    from cogvideox.text.encoders import T5Encoder


class Conditioner(nn.Module):
    """A text encoder and the probability with which training replaces a caption's context by zeros.

    encoder: T5Encoder, or any module with its methods. caption_dropout: 0.1 in the published models.
    Raises: ConfigError for a dropout outside [0, 1].
    """

    def __init__(self, encoder: object, caption_dropout: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= caption_dropout <= 1.0:
            raise ConfigError(f"conditioner: caption_dropout is {caption_dropout}, must be between 0 and 1")
        self.encoder: T5Encoder = encoder  # type: ignore[assignment]
        self.caption_dropout = caption_dropout

    @property
    def width(self) -> int:
        """e, the width of the context."""
        return self.encoder.width

    @property
    def max_length(self) -> int:
        """l, the number of text tokens."""
        return self.encoder.max_length

    def encode(self, captions: Sequence[str], keep: Tensor | None = None) -> Tensor:
        """captions (b of them), keep bool [b] -> context [b, l, e]; where keep is False the context is zeros.

        Zeros, not the encoding of "": that is what the released models were trained with.
        """
        context = self.encoder(captions)
        if keep is None:
            return context
        dropped = ~keep.to(context.device, non_blocking=True)
        return context.masked_fill(dropped[:, None, None], 0.0)

    def null_context(self, batch: int, like: Tensor) -> Tensor:
        """The unconditional twin of a context: zeros [batch, l, e] with the dtype and device of `like` [*, l,
        e]."""
        return torch.zeros(batch, *like.shape[1:], dtype=like.dtype, device=like.device)

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before cutting; those above max_length lose their end."""
        return self.encoder.count_tokens(captions)

    def free(self) -> None:
        """Give the encoder's memory back, where everything is encoded: only `null_context` works from here on."""
        self.encoder = None  # type: ignore[assignment]

    def move(self, device: torch.device | str, dtype: torch.dtype) -> Conditioner:
        """Move and cast the encoder."""
        self.encoder.move(device, dtype)
        return self
