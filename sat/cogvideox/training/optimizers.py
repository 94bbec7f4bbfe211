"""The optimizer that the DeepSpeed section asks for, and its parameter groups.

By default AdamW is torch's fused kernel: nothing is compiled at start. DeepSpeed's own kernels are compiled on first
use; they are taken when asked for (`torch_adam: false`) and for an optimizer that is offloaded to the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cogvideox.errors import ConfigError

_WHERE = "deepspeed.optimizer"
_ADAM_TYPES = ("adam", "adamw", "sat.ops.fusedemaadam", "torch.optim.adamw")
_PARAMS = ("lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode", "bias_correction", "fused")


@dataclass(frozen=True)
class AdamSettings:
    """lr: peak rate. decoupled: AdamW; otherwise the decay is added to the gradient. by_deepspeed: compile
    and use its kernel. is_offloaded: the one for the CPU, where the state is."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True
    by_deepspeed: bool = False
    is_offloaded: bool = False


def read_optimizer(deepspeed_section: Mapping[str, Any]) -> AdamSettings:
    """Settings from `deepspeed.optimizer`.

    Raises:
        ConfigError: section or rate missing, unknown type or parameter, value out of range.
    """
    section = deepspeed_section.get("optimizer")
    if not section:
        raise ConfigError(f"{_WHERE}: missing; give type: AdamW and params: {{lr: ...}}")
    kind = str(section.get("type", "AdamW"))
    if kind.lower() not in _ADAM_TYPES:
        raise ConfigError(f"{_WHERE}.type: {kind!r} is not available; valid are AdamW, Adam, sat.ops.FusedEmaAdam")
    params = dict(section.get("params") or {})
    unknown = sorted(set(params) - set(_PARAMS))
    if unknown:
        raise ConfigError(f"{_WHERE}.params: unknown {', '.join(unknown)}; valid are {', '.join(_PARAMS)}")
    if "lr" not in params:
        raise ConfigError(f"{_WHERE}.params.lr: missing; LoRA with alpha 1 takes 1e-4 to 1e-3, full fine-tuning 1e-5")
    is_offloaded = _is_offloaded(deepspeed_section)
    return AdamSettings(
        lr=_at_least_zero(params, "lr", 0.0),
        betas=_betas(params.get("betas", (0.9, 0.999))),
        eps=_at_least_zero(params, "eps", 1e-8),
        weight_decay=_at_least_zero(params, "weight_decay", 0.0),
        decoupled=bool(params.get("adam_w_mode", True)),
        by_deepspeed=not params.get("torch_adam", True) or is_offloaded,
        is_offloaded=is_offloaded,
    )


def _is_offloaded(deepspeed_section: Mapping[str, Any]) -> bool:
    offload = (deepspeed_section.get("zero_optimization") or {}).get("offload_optimizer") or {}
    return offload.get("device", "none") not in ("none", None)


def _at_least_zero(params: Mapping[str, Any], name: str, default: float) -> float:
    value = params.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{_WHERE}.params.{name}: {value!r} is not a number") from None
    if not number >= 0:
        raise ConfigError(f"{_WHERE}.params.{name}: {number} must not be negative")
    return number


def _betas(value: Any) -> tuple[float, float]:
    betas = tuple(float(each) for each in value)
    if len(betas) != 2 or not all(0.0 <= each < 1.0 for each in betas):
        raise ConfigError(
            f"{_WHERE}.params.betas: {list(betas)} must be two numbers in [0, 1), for example [0.9, 0.95]"
        )
    return betas[0], betas[1]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed, and not decayed.

    Not decayed are biases, norm weights (all parameters with fewer than two dimensions) and position tables:
    shrinking them regularises nothing.

    Raises:
        ConfigError: nothing is trainable.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError(
            "model.not_trainable_prefixes: leaves nothing to train; ['all'] is for LoRA and needs a lora_config"
        )

    def is_decayed(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2 and not name.endswith("pos_embedding")

    decayed = [parameter for name, parameter in trainable if is_decayed(name, parameter)]
    spared = [parameter for name, parameter in trainable if not is_decayed(name, parameter)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_adam(groups: list[dict[str, Any]], settings: AdamSettings) -> torch.optim.Optimizer:
    """torch's fused Adam(W). Its rate is 0 until the engine sets that of the first step: DeepSpeed may run a step
    while it starts, which must not move a weight."""
    kind = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
    return kind(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


def deepspeed_section_for(settings: AdamSettings) -> dict[str, Any]:
    """The `optimizer` section that makes DeepSpeed build its own kernel, with rate 0 as in `build_adam`."""
    params = {
        "lr": 0.0,
        "betas": list(settings.betas),
        "eps": settings.eps,
        "adam_w_mode": settings.decoupled,
    }
    return {"type": "Adam", "params": params}
