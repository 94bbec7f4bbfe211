"""LoRA adapters: SAT's names and peft's, and the merge with the weights they belong to.

Adapter tensors are equal in both; only names differ, and SAT's k-th pair of query_key_value belongs to diffusers' to_q,
to_k or to_v. SAT's names are those inside the transformer, diffusers' carry the pipeline's prefix `transformer.`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.weights.transformer_map import Rule, Step, find_rule

_ATTENTION = "transformer.layers.{i}.attention."
_PEFT = "transformer.transformer_blocks.{i}.attn1."
_TARGETS = (
    ("query_key_value", 0, "to_q"),
    ("query_key_value", 1, "to_k"),
    ("query_key_value", 2, "to_v"),
    ("dense", 0, "to_out.0"),
)
RULES = tuple(
    Rule(f"{_ATTENTION}{name}.matrix_{side}.{part}", (f"{_PEFT}{target}.lora_{side}.weight",))
    for name, part, target in _TARGETS
    for side in ("A", "B")
)
TARGET_MODULES = tuple(target for _, _, target in _TARGETS)
_ADAPTER = re.compile(r"\.matrix_[AB]\.\d+$")
_ORIGINAL = ".original."


def to_peft(names: Iterable[str]) -> list[Step]:
    """Steps from SAT's adapters to peft's. Raises: CheckpointError that names a tensor which is no adapter."""
    steps = []
    for name in names:
        rule, fields = find_rule(RULES, name, "SAT")
        steps.append(Step((name,), (rule.diffusers[0].format(**fields),), list))
    return steps


def to_sat(names: Iterable[str]) -> list[Step]:
    """Steps from peft's adapters to SAT's. Raises: CheckpointError that names a tensor which is no adapter."""
    steps = []
    for name in names:
        rule, fields = find_rule(RULES, name, "diffusers")
        steps.append(Step((name,), (rule.sat.format(**fields),), list))
    return steps


def is_adapter(name: str) -> bool:
    """Whether a SAT name is that of a LoRA matrix."""
    return _ADAPTER.search(name) is not None


def plain_name(name: str) -> str:
    """The name that a weight under adapters has in a model without them."""
    return name.replace(_ORIGINAL, ".")


def peft_config(r: int, lora_alpha: float) -> dict[str, object]:
    """The peft LoraConfig with which weight 1.0 reproduces training (scale lora_alpha / r)."""
    return {
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGET_MODULES),
    }


def adapter_header(r: int, lora_alpha: float) -> dict[str, str]:
    """Header of `pytorch_lora_weights.safetensors` from which diffusers takes rank, alpha and targets."""
    config = {f"transformer.{key}": value for key, value in peft_config(r, lora_alpha).items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(config, indent=2, sort_keys=True)}


def merge_weight(
    original: Tensor, matrices_a: Sequence[Tensor], matrices_b: Sequence[Tensor], scaling: float
) -> Tensor:
    """original [o, i] + scaling * B A, for k pairs A [r, i], B [o / k, r] that fill the rows in turn.

    Products and sum are computed in fp32 and rounded once, to the dtype of `original`.
    """
    update = torch.cat([b.float() @ a.float() for a, b in zip(matrices_a, matrices_b, strict=True)])
    return (original.float() + scaling * update).to(original.dtype)


class MergedWeights(Mapping[str, Tensor]):
    """A SAT state dict with adapters, seen as one without: names are plain, weights are merged when read.

    scaling: lora_alpha / r, times a strength if other than 1.

    Raises:
        CheckpointError: an A without its B, or adapters whose base weight is not there.
    """

    def __init__(self, state: Mapping[str, Tensor], scaling: float) -> None:
        self._state = state
        self._scaling = scaling
        self._stored = {plain_name(name): name for name in state if not is_adapter(name)}
        self._adapters: dict[str, list[int]] = {}
        for name in state:
            if is_adapter(name):
                self._add_adapter(name)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[self._stored[name]]
        parts = self._adapters.get(name)
        if parts is None:
            return tensor
        layer = name.removesuffix("weight")
        a, b = ([self._state[f"{layer}matrix_{side}.{part}"] for part in sorted(parts)] for side in "AB")
        return merge_weight(tensor, a, b, self._scaling)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def _add_adapter(self, name: str) -> None:
        layer, side, part = re.fullmatch(r"(.*\.)matrix_([AB])\.(\d+)", name).groups()  # type: ignore[union-attr]
        other = f"{layer}matrix_{'B' if side == 'A' else 'A'}.{part}"
        if other not in self._state:
            raise CheckpointError(f"the adapter {name} has no partner {other}")
        if f"{layer}weight" not in self._stored:
            raise CheckpointError(f"the adapter {name} has no weight {layer}original.weight to be merged into")
        if side == "A":
            self._adapters.setdefault(f"{layer}weight", []).append(int(part))
