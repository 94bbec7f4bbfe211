"""The mixin that makes SAT's layers CogVideoX blocks: adaptive LayerNorm per stream, LayerNorm on queries and keys.

Letters: b batch, l text tokens, v video tokens, d hidden, h head width, e time embedding width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from sat.model.base_model import BaseMixin, BaseModel
from torch import Tensor, nn

from cogvideox.transformer.block import NUM_CHUNKS, transformer_block
from cogvideox.transformer.modulation import Modulation
from cogvideox.transformer.shape import NetworkShape

QK_NORM_EPS = 1e-6
# Graphs of the block: torch makes them for the first shape, for any shape and for batches of one; each of these with
# and without gradients, and once more where the first layer's input needs none (adapters). torch's own limit is 8.
MAX_GRAPHS = 64


class AdaLNMixin(BaseMixin):
    """Overrides SAT's `layer_forward` hook with the whole block of block.py.

    The attribute names are stored names (`adaLN_modulations.{i}.1`, `query_layernorm_list.{i}`).
    """

    def __init__(self, qk_ln: bool = True, *, network: NetworkShape) -> None:
        super().__init__()
        self.num_heads = network.num_attention_heads
        layers = range(network.num_layers)
        self.adaLN_modulations = nn.ModuleList(
            Modulation(network.time_embed_dim, NUM_CHUNKS, network.hidden_size, network.dtype) for _ in layers
        )
        self.qk_ln = qk_ln
        if qk_ln:
            self.query_layernorm_list = nn.ModuleList(_head_norm(network) for _ in layers)
            self.key_layernorm_list = nn.ModuleList(_head_norm(network) for _ in layers)
        self._block: Callable[..., tuple[Tensor, Tensor]] = transformer_block

    def reinit(self, parent_model: BaseModel | None = None) -> None:
        """At first every block passes its input through."""
        for modulation in self.adaLN_modulations:
            assert isinstance(modulation, Modulation)
            modulation.init_zero()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Run the block through torch.compile from now on: one graph, compiled once for all layers.

        Modules stay as they are, and so do stored names.
        """
        self._block = torch.compile(transformer_block, fullgraph=True, backend=backend, **_graph_limit())

    def layer_forward(
        self, text: Tensor, video: Tensor, conditioning: Tensor, rotation: Tensor | None = None, *, layer_id: int
    ) -> tuple[Tensor, Tensor]:
        """Block `layer_id` on text [b, l, d] and video [b, v, d], given the SiLU of the time embedding [b, e].

        rotation: of queries and keys [2, l + v, 1, h/2, 2], None for none.
        """
        if layer_id == 0 and self._block is not transformer_block:
            # The embeddings are views, what later layers get is not: compiled code would be made for both.
            text, video = text.clone(), video.clone()
        return self._block(
            self.transformer.layers[layer_id],
            self.adaLN_modulations[layer_id],
            self.query_layernorm_list[layer_id] if self.qk_ln else None,
            self.key_layernorm_list[layer_id] if self.qk_ln else None,
            self.num_heads,
            text,
            video,
            conditioning,
            rotation,
        )


def _graph_limit() -> dict[str, Any]:
    """MAX_GRAPHS as an argument of torch.compile; before it took one, as torch's setting for the whole process."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": MAX_GRAPHS}
    settings = torch._dynamo.config
    settings.cache_size_limit = max(settings.cache_size_limit, MAX_GRAPHS)
    return {}


def _head_norm(network: NetworkShape) -> nn.LayerNorm:
    return nn.LayerNorm(network.head_dim, eps=QK_NORM_EPS, dtype=network.dtype)
