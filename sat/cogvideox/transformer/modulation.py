"""Shifts, scales and gates from the time embedding.

Letters: b batch, s tokens, d hidden, e time embedding width, k chunks.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from cogvideox.transformer.linear import Linear


class Modulation(nn.Sequential):
    """SiLU, then a projection e -> k d. The projection's stored name is `1`.

    The SiLU of the time embedding is the same for all layers: the model computes it once and calls `chunks`.
    """

    def __init__(self, time_embed_dim: int, num_chunks: int, width: int, dtype: torch.dtype) -> None:
        super().__init__(nn.SiLU(), Linear(time_embed_dim, num_chunks * width, dtype=dtype))
        self.num_chunks = num_chunks

    @property
    def projection(self) -> Linear:
        return cast(Linear, self[1])

    def init_zero(self) -> None:
        """No modulation at first ("adaLN-Zero", 2212.09748)."""
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def chunks(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        """The SiLU of the time embedding [b, e] -> k tensors [b, 1, d]."""
        return self.projection(conditioning)[:, None].chunk(self.num_chunks, dim=-1)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """tokens * (1 + scale) + shift for tokens [b, s, d] and shift, scale [b, 1, d], in one pass."""
    return torch.addcmul(shift, tokens, 1 + scale)
