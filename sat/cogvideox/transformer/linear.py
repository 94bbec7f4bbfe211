"""The linear layer of the blocks: plain weights, no process groups.

Letters: b batch, s tokens, i input width, o output width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cogvideox.transformer.cpu_linear import linear


class Linear(nn.Linear):
    """`nn.Linear` that can also hand out its output in equal parts.

    SAT's parallel linears ask for the model-parallel group in every call, which breaks torch.compile's graph; the
    framework never splits a layer over processes, so the blocks hold this layer under the same stored names.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., i] -> [..., o]."""
        return linear(tokens, self.weight, self.bias)

    def forward_parts(self, tokens: Tensor, parts: int) -> tuple[Tensor, ...]:
        """The output [b, s, o] as `parts` views [b, s, o / parts]."""
        return self(tokens).chunk(parts, dim=-1)

    @classmethod
    def adopt(cls, weight: Tensor, bias: Tensor | None) -> Linear:
        """A layer around existing tensors weight [o, i] and bias [o], without copying them."""
        with torch.device("meta"):
            layer = cls(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight.detach())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach())
        return layer
