"""Latent video and text states to tokens.

Letters: b batch, f latent frames, c channels, y x latent height/width, l text tokens, e text width, d hidden,
v video tokens in (f y x) order, p = (pt, ph, pw) the patch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from sat.model.base_model import BaseMixin, BaseModel
from torch import Tensor, nn

from cogvideox.transformer.linear import Linear
from cogvideox.transformer.shape import NetworkShape


class PatchProjection(nn.Module):
    """Projects patches to tokens, one matrix product over flattened patches (c, pt, ph, pw).

    The stored weight is that of a convolution, [d, c, ph, pw], when patches are one frame deep (1.0 checkpoints), and
    that of a linear layer, [d, c * pt * ph * pw], otherwise (1.5). Both hold the same numbers in the same order, and
    loading accepts both for both.
    """

    def __init__(self, network: NetworkShape) -> None:
        super().__init__()
        self.patch_size = network.patch_size
        frames, height, width = network.patch_size
        channels, hidden = network.in_channels, network.hidden_size
        shape = (hidden, channels, height, width) if frames == 1 else (hidden, channels * network.patch_volume)
        self.weight = nn.Parameter(torch.empty(shape, dtype=network.dtype))
        self.bias = nn.Parameter(torch.empty(hidden, dtype=network.dtype))
        self._register_load_state_dict_pre_hook(self._fold_weight)

    def forward(self, latent: Tensor) -> Tensor:
        """latent [b, f, c, y, x] -> tokens [b, v, d]."""
        frames, height, width = self.patch_size
        patches = rearrange(
            latent,
            "b (f pt) c (y ph) (x pw) -> b (f y x) (c pt ph pw)",
            pt=frames,
            ph=height,
            pw=width,
        )
        return F.linear(patches, self.weight.flatten(1), self.bias)

    def _fold_weight(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        stored = state_dict.get(f"{prefix}weight")
        if stored is not None and stored.numel() == self.weight.numel() and len(stored) == len(self.weight):
            state_dict[f"{prefix}weight"] = stored.reshape(self.weight.shape)


class PatchEmbedMixin(BaseMixin):
    """Overrides SAT's `word_embedding_forward` hook. `proj` and `text_proj` are stored names."""

    def __init__(self, text_hidden_size: int = 4096, *, network: NetworkShape) -> None:
        super().__init__()
        self.text_hidden_size = text_hidden_size
        self.proj = PatchProjection(network)
        self.text_proj = Linear(text_hidden_size, network.hidden_size, dtype=network.dtype)

    def reinit(self, parent_model: BaseModel | None = None) -> None:
        """Xavier weights as for a linear layer, zero bias; SAT's own word table goes."""
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))
        nn.init.zeros_(self.proj.bias)
        if parent_model is not None:
            del parent_model.transformer.word_embeddings

    def word_embedding_forward(self, latent: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """latent [b, f, c, y, x] and context [b, l, e] -> text tokens [b, l, d], video tokens [b, v, d]."""
        return self.text_proj(context), self.proj(latent)
