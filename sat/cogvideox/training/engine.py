"""DeepSpeed's engine, driven directly: one call is one optimizer step.

Nothing here waits for the device: losses and norms stay tensors until the metrics are read. (DeepSpeed's own ZeRO and
16-bit optimizers read one overflow flag per step.)

Letters: b samples of a micro batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from cogvideox.errors import ConfigError
from cogvideox.log import get_logger
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.parallel.zero import (
    capture_optimizer,
    forget_initial_step,
    prepare_deepspeed,
    restore_optimizer,
)
from cogvideox.training.lr_schedules import Schedule
from cogvideox.training.optimizers import (
    AdamSettings,
    build_adam,
    deepspeed_section_for,
    parameter_groups,
)

_log = get_logger(__name__)


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
class StepResult:
    """What one optimizer step gave on this process; tensors are scalars on the device.

    loss: fp32, mean over this process's samples. grad_norm: before clipping, over all processes. is_bad: true when
    loss or gradients were not finite (an overflow that fp16's loss scale absorbs doesn't count).
    """

    loss: Tensor
    grad_norm: Tensor | float
    is_bad: Tensor


def read_dtype(section: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """Precision of the weights: bf16 or fp16 when the DeepSpeed section enables it, else fp32.

    Raises:
        ConfigError: both enabled, or fp16 on the CPU.
    """
    bf16, fp16 = (bool((section.get(name) or {}).get("enabled", False)) for name in ("bf16", "fp16"))
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


class TrainEngine:
    """Owns the model from here on: in training and evaluation it is reached through this object only.

    model(batch) gives fp32 losses [b]. Its weights are loaded already: DeepSpeed copies them into its fp32 masters
    now. section: the `deepspeed` section. Zero stages 0, 1, 2.

    Raises:
        ConfigError: nothing trainable, ZeRO 3, a `scheduler` section, contradicting batch sizes.
    """

    def __init__(
        self,
        model: nn.Module,
        section: Mapping[str, Any],
        optimizer: AdamSettings,
        schedule: Schedule,
        groups: ProcessGroups,
    ) -> None:
        self.sizes = read_batch_sizes(section, groups.world_size)
        self._schedule, self._peak_lr, self._groups = schedule, optimizer.lr, groups
        config, self._clip = _deepspeed_config(section, self.sizes)
        parameters = parameter_groups(model, optimizer.weight_decay)
        self._trainable: list[nn.Parameter] = [each for group in parameters for each in group["params"]]
        client = None
        if optimizer.by_deepspeed:
            config["optimizer"] = deepspeed_section_for(optimizer)
        else:
            client = build_adam(parameters, optimizer)
        prepare_deepspeed(groups.device)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=client,
            model_parameters=parameters,
            config=config,
            dist_init_required=False,
        )
        forget_initial_step(self._engine)
        # A plain torch optimizer (fp32, ZeRO 0) is the one case in which DeepSpeed neither measures nor
        # guards the gradients.
        self._is_plain = self._engine.optimizer is self._engine.basic_optimizer

    @property
    def module(self) -> nn.Module:
        """The model, for reading its state when it is saved."""
        return self._engine.module

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        return self._peak_lr * self._schedule(step)

    def step(self, step: int, batches: Sequence[Any]) -> StepResult:
        """Forward and backward of one micro batch after the other, then one update with the rate of this step."""
        assert len(batches) == self.sizes.accumulation, "one step takes `accumulation` micro batches"
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.lr(step)
        total = torch.zeros((), device=self._groups.device)
        for batch in batches:
            loss = self._engine(batch).mean()
            self._engine.backward(loss)
            total += loss.detach().float() / len(batches)
            if self._engine.is_gradient_accumulation_boundary() and self._is_plain:
                norm = self._measure_and_guard()
            self._engine.step()
        if self._is_plain:
            return StepResult(total, norm, ~(torch.isfinite(total) & torch.isfinite(norm)))
        return StepResult(
            total, self._engine.get_global_grad_norm() or 0.0, ~torch.isfinite(total) | self._was_refused()
        )

    def _measure_and_guard(self) -> Tensor:
        """Norm of the averaged gradients; clip them; make the fused kernel skip the step when it isn't finite."""
        gradients = [parameter.grad for parameter in self._trainable if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._trainable, self._clip, norm)
        optimizer = self._engine.basic_optimizer
        optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(norm)).float()
        return norm

    def _was_refused(self) -> bool:
        """Whether DeepSpeed skipped the step for a reason other than fp16's search for a loss scale."""
        searching = self._engine.fp16_enabled() and self._engine.optimizer.loss_scale > 1
        return not self._engine.was_step_applied() and not searching

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        """The model in evaluation mode without gradients, as a callable; training mode again afterwards."""
        self._engine.eval()
        try:
            with torch.no_grad():
                yield self._engine
        finally:
            self._engine.train()

    def capture(self) -> dict[str, Any]:
        """This process's optimizer state, in tensors that still belong to the optimizer."""
        return capture_optimizer(self._engine)

    def restore(self, state: dict[str, Any]) -> None:
        """Raises: CheckpointError when the state belongs to another kind of run."""
        restore_optimizer(self._engine, state)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds its own slice of the optimizer state."""
        return self._engine.zero_optimization_stage() > 0


def _deepspeed_config(section: Mapping[str, Any], sizes: BatchSizes) -> tuple[dict[str, Any], float]:
    """The section for DeepSpeed, and the clip norm that is left to us (0 when DeepSpeed clips)."""
    config = copy.deepcopy(dict(section))
    stage = (config.get("zero_optimization") or {}).get("stage", 0)
    if stage not in (0, 1, 2):
        raise ConfigError(f"deepspeed.zero_optimization.stage: {stage} is not supported; valid are 0, 1, 2")
    if config.pop("scheduler", None):
        raise ConfigError("deepspeed.scheduler: not used here; set args.lr_schedule and args.warmup_steps instead")
    config.pop("optimizer", None)
    config.update(
        train_batch_size=sizes.effective,
        train_micro_batch_size_per_gpu=sizes.micro,
        gradient_accumulation_steps=sizes.accumulation,
    )
    config.setdefault("steps_per_print", None)
    bf16, fp16 = (bool((config.get(name) or {}).get("enabled")) for name in ("bf16", "fp16"))
    clip = 0.0
    if stage == 0 and fp16:
        # Without ZeRO, DeepSpeed 0.19 divides fp16 gradients by a loss scale that it never applied to the loss.
        # Stage 1 computes the same thing, right; on one process it also needs the same memory.
        _log.info("fp16 runs with ZeRO stage 1: DeepSpeed scales no fp16 loss at stage 0")
        config["zero_optimization"] = {**(config.get("zero_optimization") or {}), "stage": 1}
    elif stage == 0 and not bf16:
        # DeepSpeed's fp32 clipping reads the norm on the host; ours stays on the device.
        clip = float(config.pop("gradient_clipping", 0.0))
    return config, clip
