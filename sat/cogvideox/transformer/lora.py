"""Low-rank adapters on the attention projections, with the names and semantics of SAT's lora2.

Letters: b batch, s tokens, i input width, o output width, r rank, k parts (3 for query_key_value, 1 for dense).
Source: "LoRA" (2106.09685).
"""

from __future__ import annotations

import math

import torch
from sat.model.base_model import BaseModel
from sat.model.finetune import lora2
from torch import Tensor, nn

from cogvideox.errors import ConfigError
from cogvideox.transformer.adapted_product import adapted_product
from cogvideox.transformer.cpu_linear import linear
from cogvideox.transformer.linear import Linear
from cogvideox.transformer.shape import NetworkShape
from cogvideox.weights.lora_map import merge_weight


class LoraLinear(nn.Module):
    """`original(x) + scaling * B A x`, with separate A and B for each of k equal parts of the output.

    Stored names: `original.{weight,bias}`, `matrix_A.{k}` [r, i], `matrix_B.{k}` [o / k, r]. A state dict that holds a
    plain linear layer here loads into `original`; its missing adapters are reported as missing, as for any module.
    """

    def __init__(self, original: Linear, parts: int, r: int, lora_alpha: float, lora_dropout: float) -> None:
        super().__init__()
        self.original = original
        self.lora_dropout = nn.Dropout(lora_dropout) if lora_dropout else nn.Identity()
        self.base_scaling = lora_alpha / r
        self.scaling = self.base_scaling
        outputs, inputs = original.weight.shape
        like = original.weight
        self.matrix_A = nn.ParameterList(like.new_empty((r, inputs)) for _ in range(parts))
        self.matrix_B = nn.ParameterList(like.new_empty((outputs // parts, r)) for _ in range(parts))
        self.init_adapters()
        self._register_load_state_dict_pre_hook(_plain_names_to_original)

    def init_adapters(self) -> None:
        """Kaiming-uniform A and zero B: no effect until trained. Drawn on the CPU: a seed means the same everywhere."""
        for matrix_a, matrix_b in zip(self.matrix_A, self.matrix_B, strict=True):
            drawn = nn.init.kaiming_uniform_(torch.empty_like(matrix_a, device="cpu"), a=math.sqrt(5))
            matrix_a.data.copy_(drawn)
            nn.init.zeros_(matrix_b)

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, s, i] -> [b, s, o]."""
        parts = self.forward_parts(tokens, len(self.matrix_B))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def forward_parts(self, tokens: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[b, s, i] -> k tensors [b, s, o / k], each contiguous: the adapters' products are added while writing."""
        assert parts == len(self.matrix_B), f"the adapters have {len(self.matrix_B)} parts, not {parts}"
        down, ups = torch.cat(list(self.matrix_A)), list(self.matrix_B)
        dropped = None if isinstance(self.lora_dropout, nn.Identity) else self.lora_dropout(tokens)
        if torch.compiler.is_compiling():  # what follows is fused
            base = self.original.forward_parts(tokens, parts)
            low = self.scaling * linear(tokens if dropped is None else dropped, down)
            return tuple(
                whole + linear(each, up) for whole, each, up in zip(base, low.chunk(parts, dim=-1), ups, strict=True)
            )
        return adapted_product(tokens, dropped, self.original.weight, self.original.bias, down, ups, self.scaling)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with the adapters, at their present strength, added to the weight (summed in fp32)."""
        weight = merge_weight(self.original.weight, list(self.matrix_A), list(self.matrix_B), self.scaling)
        return Linear.adopt(weight, self.original.bias)


class LoraMixin(lora2.LoraMixin):
    """SAT's LoraMixin with layers that compile, report missing adapters and share nothing between each other.

    Every layer's `attention.query_key_value` and `attention.dense` get adapters. The scale is lora_alpha / r, and
    lora_alpha is 1 unless stated, as in SAT.

    Raises:
        ConfigError: a rank below 1, or a dropout outside [0, 1).
    """

    def __init__(self, r: int, lora_alpha: float = 1.0, lora_dropout: float = 0.0, *, network: NetworkShape) -> None:
        if r < 1:
            raise ConfigError(f"lora_config.r is {r}; the rank must be at least 1")
        if not 0 < lora_alpha < math.inf:
            raise ConfigError(f"lora_config.lora_alpha is {lora_alpha}; it must be above 0 and finite")
        if not 0 <= lora_dropout < 1:
            raise ConfigError(f"lora_config.lora_dropout is {lora_dropout}; it must be at least 0 and below 1")
        super().__init__(network.num_layers, r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout)

    def reinit(self, parent_model: BaseModel) -> None:
        """Put adapters around the projections of every layer."""
        for layer in parent_model.transformer.layers:
            attention = layer.attention
            for name, parts in (("query_key_value", 3), ("dense", 1)):
                adapted = LoraLinear(getattr(attention, name), parts, self.r, self.lora_alpha, self.lora_dropout)
                setattr(attention, name, adapted)

    def adapted_layers(self) -> list[LoraLinear]:
        """Every layer with adapters; empty after merging."""
        return [module for module in self.transformer.modules() if isinstance(module, LoraLinear)]

    def init_adapters(self) -> None:
        """Start all adapters afresh, e.g. after a build on the meta device."""
        for layer in self.adapted_layers():
            layer.init_adapters()

    def set_strength(self, strength: float) -> None:
        """Scale the adapters' effect: 1 as trained, 0 none. Nothing is merged, so it can change at any time."""
        for layer in self.adapted_layers():
            layer.scaling = layer.base_scaling * strength

    def merge_lora(self) -> None:
        """Add the adapters to the weights and remove them; stored names become those of a plain model.

        SAT's interface, `model.get_mixin("lora").merge_lora()`, for a model in memory; SAT's own code would not know
        these layers. Files are merged by tools/merge_lora.py.
        """
        for layer in self.transformer.layers:
            for name in ("query_key_value", "dense"):
                adapted = getattr(layer.attention, name)
                if isinstance(adapted, LoraLinear):
                    setattr(layer.attention, name, adapted.merged())


def _plain_names_to_original(state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name in ("weight", "bias"):
        if prefix + name in state_dict:
            state_dict[f"{prefix}original.{name}"] = state_dict.pop(prefix + name)
