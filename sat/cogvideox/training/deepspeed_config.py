"""What the `deepspeed` section becomes for `deepspeed.initialize`, and what of it this program does itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cogvideox.errors import ConfigError
from cogvideox.log import get_logger

_log = get_logger(__name__)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BatchSizes:
    """micro: samples of one forward on one process; accumulation: micro batches of one step on one process."""

    micro: int
    accumulation: int
    processes: int

    @property
    def effective(self) -> int:
        """Samples of one optimizer step over all processes."""
        return self.micro * self.accumulation * self.processes


@dataclass(frozen=True)
class EngineConfig:
    """section: for `deepspeed.initialize`. is_guarded: clipping, and refusing gradients that are not finite, is left to
    torch's fused kernel (engine.TrainEngine). clip: its norm, 0 for none. accumulate: not None where fp32 copies of
    16-bit weights are kept by us (master_weights): the precision in which they sum micro batches."""

    section: dict[str, Any]
    is_guarded: bool
    clip: float = 0.0
    accumulate: torch.dtype | None = None


def read_dtype(section: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """Precision of the weights: bf16 or fp16 when the DeepSpeed section enables it, else fp32.

    Raises:
        ConfigError: both enabled, or fp16 on the CPU.
    """
    bf16, fp16 = (_is_enabled(section, name) for name in ("bf16", "fp16"))
    if bf16 and fp16:
        raise ConfigError("deepspeed: bf16.enabled and fp16.enabled exclude each other; enable one")
    if fp16 and device.type == "cpu":
        raise ConfigError(
            "deepspeed.fp16.enabled: fp16 training needs a CUDA device; on the CPU use bf16.enabled, or neither for "
            "fp32"
        )
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32


def read_batch_sizes(section: Mapping[str, Any], processes: int) -> BatchSizes:
    """Batch sizes from the three keys that DeepSpeed knows; any that is missing follows from the others.

    Raises:
        ConfigError: they contradict each other for this number of processes.
    """
    total, micro = section.get("train_batch_size"), section.get("train_micro_batch_size_per_gpu")
    accumulation = section.get("gradient_accumulation_steps")
    if total is None or (micro is not None and accumulation is not None):
        sizes = BatchSizes(micro or 1, accumulation or 1, processes)
    elif micro is not None:
        sizes = BatchSizes(micro, total // (micro * processes), processes)
    else:
        sizes = BatchSizes(total // ((accumulation or 1) * processes), accumulation or 1, processes)
    if min(sizes.micro, sizes.accumulation) < 1 or (total is not None and sizes.effective != total):
        raise ConfigError(
            f"deepspeed.train_batch_size: {total} is not train_micro_batch_size_per_gpu x gradient_accumulation_steps "
            f"x processes ({sizes.micro} x {sizes.accumulation} x {processes})"
        )
    return sizes


def engine_config(section: Mapping[str, Any], sizes: BatchSizes, trainable: int, *, by_deepspeed: bool) -> EngineConfig:
    """The section completed for DeepSpeed, and the part that is ours.

    Args:
        trainable: elements of all weights that train.
        by_deepspeed: the optimizer is DeepSpeed's own, which nobody can tell to skip a step.

    Raises:
        ConfigError: a ZeRO stage other than 0, 1, 2; a `scheduler` section.
    """
    config = copy.deepcopy(dict(section))
    zero = config["zero_optimization"] = dict(config.get("zero_optimization") or {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2):
        raise ConfigError(f"deepspeed.zero_optimization.stage: {stage} is not supported; valid are 0, 1, 2")
    if config.pop("scheduler", None):
        raise ConfigError("deepspeed.scheduler: not used here; set args.lr_schedule and args.warmup_steps instead")
    config.pop("optimizer", None)
    config.update(
        train_batch_size=sizes.effective,
        train_micro_batch_size_per_gpu=sizes.micro,
        gradient_accumulation_steps=sizes.accumulation,
        # It would wait for the device twice per micro batch, to measure a speed that is not shown.
        timers={"throughput": {"enabled": False}},
    )
    config.setdefault("steps_per_print", None)
    _limit_buckets(zero, trainable)
    bf16, fp16 = (_is_enabled(config, name) for name in ("bf16", "fp16"))
    if stage == 0 and fp16:
        # Without ZeRO, DeepSpeed 0.19 divides fp16 gradients by a loss scale that it never applied to the loss.
        # Stage 1 computes the same thing, right; on one process it also needs the same memory.
        _log.info("fp16 runs with ZeRO stage 1: DeepSpeed scales no fp16 loss at stage 0")
        zero["stage"] = 1
    sums = (config.get("data_types") or {}).get("grad_accum_dtype") or ("bf16" if bf16 else "fp16" if fp16 else "fp32")
    if zero.get("stage", 0) < 2:  # one communication per step, of what was summed
        config["communication_data_type"] = config.get("communication_data_type") or sums
    is_plain = stage == 0 and not (bf16 or fp16)  # DeepSpeed steps the optimizer and no more
    if fp16 or (by_deepspeed and not is_plain):  # fp16's loss scale is found on the host, from the norm
        return EngineConfig(config, is_guarded=False)
    clip = float(config.get("gradient_clipping", 0.0))
    config["gradient_clipping"] = 0.0
    if stage > 0 or is_plain:
        if bf16:
            config["bf16"] = {**config["bf16"], "check_grad_overflow": False}  # the guard does
        return EngineConfig(config, is_guarded=True, clip=clip)
    # For DeepSpeed this is an fp32 run whose optimizer keeps its weights elsewhere.
    config.pop("data_types", None)
    del config["bf16"]
    return EngineConfig(config, is_guarded=True, clip=clip, accumulate=_DTYPES[sums])


def _limit_buckets(zero: dict[str, Any], trainable: int) -> None:
    """DeepSpeed allocates a whole bucket in every backward pass, however little of it is filled: never more than what
    trains. (It wants even numbers.)"""
    most = trainable + trainable % 2
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        zero[key] = min(int(zero.get(key, most)), most)


def _is_enabled(section: Mapping[str, Any], name: str) -> bool:
    return bool((section.get(name) or {}).get("enabled", False))
