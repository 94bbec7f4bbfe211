"""LoRA adapters: their names in SAT and in every layout that others read, and the merge with their weights.

Adapter tensors are equal in all layouts; only names differ. SAT's k-th pair of query_key_value belongs to q, k or v
elsewhere. TARGETS and LAYOUTS are the one table for both directions. SAT's names here are those inside the transformer.

    diffusers        transformer.transformer_blocks.7.attn1.to_q.lora_A.weight       rank and alpha in the file's header
    comfyui          diffusion_model.blocks.7.q.lora_A.weight, ....q.alpha           ComfyUI's own CogVideoX model
    comfyui-wrapper  lora_unet_transformer_blocks_7_attn1_to_q.lora_down.weight, ....alpha    kohya's naming

Source: module names in ComfyUI, comfy/ldm/cogvideo/model.py; keys and alpha in comfy/lora.py (model_lora_keys_unet) and
comfy/weight_adapter/lora.py; for the wrapper, merge_lora in lora_utils.py of kijai/ComfyUI-CogVideoXWrapper.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cogvideox.errors import CheckpointError

LayoutName = Literal["diffusers", "comfyui", "comfyui-wrapper"]
Kind = Literal["A", "B", "alpha"]
PAIR: tuple[Kind, Kind] = ("A", "B")  # A [r, i] goes down to the rank, B [o, r] up again


@dataclass(frozen=True)
class Target:
    """One matrix that an adapter changes: rows `part` of SAT's layer `sat`, and the layer's name elsewhere."""

    sat: str
    part: int
    diffusers: str
    comfyui: str


@dataclass(frozen=True)
class AdapterName:
    """What a stored name of any layout means."""

    layer: int
    target: Target
    kind: Kind

    @property
    def sat(self) -> str:
        """The matrix's name in SAT."""
        return f"transformer.layers.{self.layer}.attention.{self.target.sat}.matrix_{self.kind}.{self.target.part}"


@dataclass(frozen=True)
class Layout:
    """How names are made: a module with {i} for the layer, then one of the suffixes. No alpha suffix: in the header."""

    module: str
    suffixes: Mapping[Kind, str]


TARGETS = (
    Target("query_key_value", 0, "attn1.to_q", "q"),
    Target("query_key_value", 1, "attn1.to_k", "k"),
    Target("query_key_value", 2, "attn1.to_v", "v"),
    Target("dense", 0, "attn1.to_out.0", "attn_out"),
)
LAYOUTS: Mapping[LayoutName, Layout] = {
    "diffusers": Layout(
        "transformer.transformer_blocks.{i}.{diffusers}", {"A": ".lora_A.weight", "B": ".lora_B.weight"}
    ),
    "comfyui": Layout(
        "diffusion_model.blocks.{i}.{comfyui}", {"A": ".lora_A.weight", "B": ".lora_B.weight", "alpha": ".alpha"}
    ),
    "comfyui-wrapper": Layout(
        "lora_unet_transformer_blocks_{i}_{kohya}",
        {"A": ".lora_down.weight", "B": ".lora_up.weight", "alpha": ".alpha"},
    ),
}
TARGET_MODULES = tuple(target.diffusers.removeprefix("attn1.") for target in TARGETS)

# What programs put before a module's name, and how they call the two matrices: any combination is read.
_PREFIX = r"(?:base_model\.model\.)?(?:transformer\.|diffusion_model\.|lora_(?:unet|transformer)_)?"
_KINDS: Mapping[str, Kind] = {
    "lora_A": "A",
    "lora_down": "A",
    "lora.down": "A",
    "lora_B": "B",
    "lora_up": "B",
    "lora.up": "B",
    "alpha": "alpha",
}
_NAME = re.compile(
    rf"{_PREFIX}(?P<module>.+?)\.(?P<kind>{'|'.join(map(re.escape, _KINDS))})(?:\.(?!weight|bias)\w+)?(?:\.weight)?"
)
_BLOCK = re.compile(r"(?:transformer_)?blocks[._](?P<layer>\d+)[._](?P<rest>.+)")
_BY_MODULE = {
    name: target
    for target in TARGETS
    for name in (target.diffusers, target.comfyui, target.diffusers.replace(".", "_"))
}
_SAT_NAME = re.compile(
    r"transformer\.layers\.(?P<layer>\d+)\.attention\.(?P<sat>\w+)\.matrix_(?P<kind>[AB])\.(?P<part>\d+)"
)
_BY_SAT = {(target.sat, target.part): target for target in TARGETS}
_ADAPTER = re.compile(r"\.matrix_[AB]\.\d+$")
_ORIGINAL = ".original."
_SHOWN = 3


def parse_sat(name: str) -> AdapterName:
    """What a SAT name means. Raises: CheckpointError that names a tensor which is no adapter."""
    match = _SAT_NAME.fullmatch(name)
    target = _BY_SAT.get((match["sat"], int(match["part"]))) if match else None
    if match is None or target is None:
        raise CheckpointError(f"{name!r} is no LoRA matrix of a CogVideoX transformer in SAT's naming")
    return AdapterName(int(match["layer"]), target, "A" if match["kind"] == "A" else "B")


def parse_names(names: Iterable[str], source: str = "the file") -> dict[str, AdapterName]:
    """What the names of a LoRA file of any layout mean.

    Raises: CheckpointError that names what is no LoRA matrix, and the modules that SAT's LoRA has no place for.
    """
    found: dict[str, AdapterName] = {}
    strangers: dict[str, None] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{source}: {name!r} is no matrix of a LoRA (valid: ....lora_A.weight, .lora_B.weight)"
            )
        block = _BLOCK.fullmatch(match["module"])
        target = _BY_MODULE.get(block["rest"]) if block else None
        if block is None or target is None:
            strangers[block["rest"] if block else match["module"]] = None
        else:
            found[name] = AdapterName(int(block["layer"]), target, _KINDS[match["kind"]])
    if strangers:
        shown = ", ".join(list(strangers)[:_SHOWN]) + (" and more" if len(strangers) > _SHOWN else "")
        raise CheckpointError(
            f"{source} adapts {shown}, for which SAT's LoRA has no place: valid are "
            f"{', '.join(target.diffusers for target in TARGETS)} of transformer_blocks (train with these "
            "target_modules, or merge it into its diffusers model and convert that)"
        )
    return found


def layout_name(name: AdapterName, layout: LayoutName) -> str:
    """The stored name in a layout that has one for this kind."""
    target, chosen = name.target, LAYOUTS[layout]
    module = chosen.module.format(
        i=name.layer, diffusers=target.diffusers, comfyui=target.comfyui, kohya=target.diffusers.replace(".", "_")
    )
    return module + chosen.suffixes[name.kind]


def is_adapter(name: str) -> bool:
    """Whether a SAT name is that of a LoRA matrix."""
    return _ADAPTER.search(name) is not None


def plain_name(name: str) -> str:
    """The name that a weight under adapters has in a model without them."""
    return name.replace(_ORIGINAL, ".")


def adapted_name(name: str, adapters: Iterable[str]) -> str:
    """The opposite of `plain_name`: what a weight is called in a model with these adapters."""
    module, _, kind = name.rpartition(".")
    has_adapters = any(each.startswith(f"{module}.matrix_") for each in adapters)
    return f"{module}{_ORIGINAL}{kind}" if has_adapters else name


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


def common_rank(matrices: Mapping[str, Tensor], source: str) -> int | None:
    """The rank of all adapters among stored SAT names; None when there are none.

    Raises: CheckpointError for what is no matrix, and for ranks that differ.
    """
    adapters = {name: value for name, value in matrices.items() if is_adapter(name)}
    for name, value in adapters.items():
        if value.ndim != 2 or not value.numel():
            raise CheckpointError(f"{source}: {name} has the shape {list(value.shape)}; a LoRA's are [rank, width]")
    ranks = {value.shape[0] for name, value in adapters.items() if ".matrix_A." in name}
    if len(ranks) > 1:
        raise CheckpointError(f"{source}: its LoRA matrices have ranks {sorted(ranks)}; SAT's LoRA has one for all")
    return next(iter(ranks), None)


def check_alpha(value: object, source: str) -> float:
    """A stated alpha as a number. Raises: CheckpointError unless it is one above zero."""
    try:
        alpha = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        alpha = math.nan
    if not (math.isfinite(alpha) and alpha > 0):
        raise CheckpointError(f"{source}: it states alpha {value!r}, which is no number above 0")
    return alpha


def merge_weight(
    original: Tensor, matrices_a: Sequence[Tensor], matrices_b: Sequence[Tensor], scaling: float
) -> Tensor:
    """original [o, i] + scaling * B A, for k pairs A [r, i], B [o / k, r] that fill the rows in turn.

    Products and sum are computed in fp32 and rounded once, to the dtype of `original`.
    """
    pairs = zip(matrices_a, matrices_b, strict=True)
    return _add_products(original, ((part, a, b, scaling) for part, (a, b) in enumerate(pairs)), original.dtype)


def _add_products(weight: Tensor, updates: Iterable[tuple[int, Tensor, Tensor, float]], dtype: torch.dtype) -> Tensor:
    """weight [o, i] plus scale * B A for every (part, A [r, i], B [o / k, r], scale), on rows part * o / k onwards."""
    total = weight.detach().to(torch.float32, copy=True)
    for part, a, b, scale in updates:
        rows = total.narrow(0, part * len(b), len(b))
        rows += scale * (b.float() @ a.float())
    return total.to(dtype)


class MergedWeights(Mapping[str, Tensor]):
    """A plain SAT state dict plus adapters, each at its own scale; weights are merged when they are read.

    plain: plain relative names. adapters: (matrices under relative SAT names, scale) each; scale is lora_alpha / r
    times the strength. dtype: of merged weights; by default that of the plain one. Sums are fp32, rounded once.

    Raises:
        CheckpointError: an A without its B, or adapters whose base weight is not there or has another shape.
    """

    def __init__(
        self,
        plain: Mapping[str, Tensor],
        adapters: Sequence[tuple[Mapping[str, Tensor], float]],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._plain, self._dtype = plain, dtype
        self._updates: dict[str, list[tuple[int, Tensor, Tensor, float]]] = {}
        for matrices, scale in adapters:
            for name in check_pairs(matrices):
                self._add(name, matrices, scale)

    def __getitem__(self, name: str) -> Tensor:
        weight = self._plain[name]
        if name not in self._updates:
            return weight
        return _add_products(weight, self._updates[name], self._dtype or weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)

    def _add(self, name: AdapterName, matrices: Mapping[str, Tensor], scale: float) -> None:
        a, b = (matrices[AdapterName(name.layer, name.target, kind).sat] for kind in PAIR)
        weight = f"transformer.layers.{name.layer}.attention.{name.target.sat}.weight"
        if weight not in self._plain:
            raise CheckpointError(f"the adapter {name.sat} has no weight {weight} to be merged into")
        parts = sum(target.sat == name.target.sat for target in TARGETS)
        if (parts * len(b), a.shape[1]) != tuple(self._plain[weight].shape):
            raise CheckpointError(
                f"the adapter {name.sat} is for a layer of {a.shape[1]} to {parts * len(b)}, "
                f"the base has {list(self._plain[weight].shape)[::-1]}: it belongs to another model"
            )
        self._updates.setdefault(weight, []).append((name.target.part, a, b, scale))


def check_pairs(matrices: Iterable[str]) -> list[AdapterName]:
    """The A of every pair, given relative SAT names.

    Raises: CheckpointError for a name that is no adapter, and an A without its B or the reverse.
    """
    names = {parse_sat(name) for name in matrices}
    for name in names:
        other = AdapterName(name.layer, name.target, "B" if name.kind == "A" else "A")
        if other not in names:
            raise CheckpointError(f"the adapter {name.sat} has no partner {other.sat}")
    return sorted((name for name in names if name.kind == "A"), key=lambda name: name.sat)
