"""The mixin that makes SAT's layers CogVideoX blocks: adaptive LayerNorm per stream, LayerNorm on queries and keys.

Letters: b batch, l text tokens, v video tokens, d hidden, h head width, e time embedding width.
"""

from __future__ import annotations

from collections.abc import Callable

from sat.model.base_model import BaseMixin, BaseModel
from torch import Tensor, nn

from cogvideox.transformer.block import NUM_CHUNKS, transformer_block
from cogvideox.transformer.compiled_block import CompiledBlock
from cogvideox.transformer.modulation import Modulation
from cogvideox.transformer.shape import NetworkShape

QK_NORM_EPS = 1e-6


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
        """Run the block through torch.compile from now on (see compiled_block.py).

        Modules stay as they are, and so do stored names.
        """
        self._block = CompiledBlock(backend)

    def layer_forward(
        self, text: Tensor, video: Tensor, conditioning: Tensor, rotation: Tensor | None = None, *, layer_id: int
    ) -> tuple[Tensor, Tensor]:
        """Block `layer_id` on text [b, l, d] and video [b, v, d], given the SiLU of the time embedding [b, e].

        rotation: of queries and keys [2, l + v, 1, h/2, 2], None for none.
        """
        if layer_id == 0 and isinstance(self._block, CompiledBlock):
            # The embeddings are views, what later layers get is not: compiled code would be made for both.
            text, video = text.clone(), video.clone()
        text, video = self._block(
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
        if isinstance(self._block, CompiledBlock) and layer_id + 1 == len(self.transformer.layers):
            self._block.report(video)
        return text, video


def _head_norm(network: NetworkShape) -> nn.LayerNorm:
    return nn.LayerNorm(network.head_dim, eps=QK_NORM_EPS, dtype=network.dtype)
