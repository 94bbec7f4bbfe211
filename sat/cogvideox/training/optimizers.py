"""The optimizer that the DeepSpeed section asks for, and its parameter groups.

By default AdamW is torch's fused kernel: nothing is compiled at start. DeepSpeed's own kernels are compiled on first
use; they are taken when asked for (`torch_adam: false`) and for an optimizer that is offloaded to the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.errors import ConfigError


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


def read_optimizer(section: DeepSpeedSection) -> AdamSettings:
    """What `deepspeed.optimizer` says; the section is checked."""
    params = section.optimizer_params
    first, second = params["betas"]
    return AdamSettings(
        lr=params["lr"],
        betas=(first, second),
        eps=params["eps"],
        weight_decay=params["weight_decay"],
        decoupled=params.get("adam_w_mode", True),
        by_deepspeed=not params.get("torch_adam", True) or section.is_offloaded,
        is_offloaded=section.is_offloaded,
    )


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
