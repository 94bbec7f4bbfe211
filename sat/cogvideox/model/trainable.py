"""Which parameters are trained, and the report of it that is printed before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cogvideox.errors import ConfigError
from cogvideox.log import get_logger
from cogvideox.transformer.lora import LoraLinear
from cogvideox.weights.lora_map import is_adapter

logger = get_logger(__name__)

ALL = "all"  # the published way to write: train the adapters only
_ALWAYS_FROZEN = ("first_stage_model", "conditioner")  # VAE and text encoder, by their stored names


@dataclass(frozen=True)
class TrainableReport:
    """Parameter counts. `adapter` counts LoRA matrices among the trainable; lora_scale is alpha / r, None
    without LoRA."""

    trainable: int
    total: int
    adapter: int
    lora_rank: int | None
    lora_scale: float | None

    def text(self) -> str:
        """One line for the log."""
        share = 100.0 * self.trainable / self.total
        line = f"trainable parameters: {self.trainable:,} of {self.total:,} ({share:.2f} %)"
        if self.lora_rank is None or self.lora_scale is None:
            return line
        return f"{line}; LoRA rank {self.lora_rank}, scale {self.lora_scale:.6g} (alpha / rank)"


def freeze(model: nn.Module, not_trainable_prefixes: Sequence[str]) -> TrainableReport:
    """Turn off gradients of the parameters whose names start with one of the prefixes; LoRA matrices always
    train.

    `all` freezes everything but LoRA. Names are the stored ones (`model.diffusion_model.*`);
    first_stage_model and conditioner are accepted and always frozen. Raises: ConfigError when a prefix fits
    nothing, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    prefixes = [prefix for prefix in not_trainable_prefixes if prefix not in (ALL, *_ALWAYS_FROZEN)]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in named):
            raise ConfigError(
                f"model.not_trainable_prefixes: nothing starts with {prefix!r}; a name is {next(iter(named))}"
            )
    freeze_all = ALL in not_trainable_prefixes
    for name, parameter in named.items():
        if not is_adapter(name) and (freeze_all or name.startswith(tuple(prefixes))):
            parameter.requires_grad_(False)
    report = count(model)
    if report.trainable == 0:
        hint = "add lora_config to network_config.modules" if freeze_all else "remove a prefix"
        raise ConfigError(
            f"model.not_trainable_prefixes {list(not_trainable_prefixes)} leaves nothing to train: {hint}"
        )
    if 0 < report.adapter < report.trainable:
        logger.warning("adapters and base weights are both trained; for LoRA alone set not_trainable_prefixes: ['all']")
    return report


def count(model: nn.Module) -> TrainableReport:
    """Count the parameters of a model as they are now."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rank: int | None = None
    scale: float | None = None
    adapted = next((module for module in model.modules() if isinstance(module, LoraLinear)), None)
    if adapted is not None:
        rank, scale = adapted.matrix_A[0].shape[0], adapted.base_scaling
    return TrainableReport(
        trainable=sum(p.numel() for p in trainable.values()),
        total=sum(p.numel() for p in model.parameters()),
        adapter=sum(p.numel() for name, p in trainable.items() if is_adapter(name)),
        lora_rank=rank,
        lora_scale=scale,
    )
