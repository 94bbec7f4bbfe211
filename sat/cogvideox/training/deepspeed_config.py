"""What the `deepspeed` section becomes for `deepspeed.initialize`, and what of it this program does itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.log import get_logger
from cogvideox.training.batch_sizes import BatchSizes

_log = get_logger(__name__)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EngineConfig:
    """section: for `deepspeed.initialize`. is_guarded: clipping, and refusing gradients that are not finite, is left to
    torch's fused kernel (engine.TrainEngine). clip: its norm, 0 for none. accumulate: not None where fp32 copies of
    16-bit weights are kept by us (master_weights): the precision in which they sum micro batches."""

    section: dict[str, Any]
    is_guarded: bool
    clip: float = 0.0
    accumulate: torch.dtype | None = None


def read_dtype(section: DeepSpeedSection, device: torch.device) -> torch.dtype:
    """Precision of the weights. Raises: ConfigError for fp16 on the CPU."""
    section.check_device(device.type == "cuda")
    return _DTYPES[section.precision]


def engine_config(section: DeepSpeedSection, sizes: BatchSizes, trainable: int, *, by_deepspeed: bool) -> EngineConfig:
    """The section made ready for DeepSpeed, and the part that is ours.

    Args:
        trainable: elements of all weights that train.
        by_deepspeed: the optimizer is DeepSpeed's own, which can't be made to skip a step.
    """
    config = section.as_dict()
    zero, stage = config["zero_optimization"], section.stage
    del config["optimizer"]
    config.update(
        train_batch_size=sizes.effective,
        train_micro_batch_size_per_gpu=sizes.micro,
        gradient_accumulation_steps=sizes.accumulation,
        # It would wait for the device twice per micro batch, to measure a speed that is not shown.
        timers={"throughput": {"enabled": False}},
    )
    _limit_buckets(zero, trainable)
    bf16, fp16 = (section.precision == name for name in ("bf16", "fp16"))
    if stage == 0 and fp16:
        # Without ZeRO, DeepSpeed 0.19 divides fp16 gradients by a loss scale that it never applied to the loss.
        # Stage 1 computes the same thing, right; on one process it also needs the same memory.
        _log.info("fp16 runs with ZeRO stage 1: DeepSpeed scales no fp16 loss at stage 0")
        zero["stage"] = 1
    sums = section.gradient_sums
    if zero["stage"] < 2:  # one communication per step, of what was summed
        config["communication_data_type"] = config.get("communication_data_type") or sums
    is_plain = stage == 0 and not (bf16 or fp16)  # DeepSpeed steps the optimizer and no more
    if fp16 or (by_deepspeed and not is_plain):  # fp16's loss scale is found on the host, from the norm
        return EngineConfig(config, is_guarded=False)
    clip = config["gradient_clipping"]
    config["gradient_clipping"] = 0.0
    if stage > 0 or is_plain:
        if bf16:
            config["bf16"] = {**config["bf16"], "check_grad_overflow": False}  # the guard does
        return EngineConfig(config, is_guarded=True, clip=clip)
    # For DeepSpeed this is an fp32 run whose optimizer keeps its weights elsewhere.
    del config["data_types"]
    del config["bf16"]
    return EngineConfig(config, is_guarded=True, clip=clip, accumulate=_DTYPES[sums])


def _limit_buckets(zero: dict[str, Any], trainable: int) -> None:
    """DeepSpeed allocates a whole bucket in every backward pass, however little of it is filled: never more than what
    trains. (It wants even numbers.)"""
    most = trainable + trainable % 2
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        zero[key] = min(zero[key], most)
