"""DeepSpeed's engine, driven directly: one call is one optimizer step.

Losses and norms stay tensors until the metrics are read, and torch's fused kernel clips, and refuses gradients that are
not finite, by itself. So the host waits for the device in no step of ZeRO 0 and 2 in bf16, nor of ZeRO 0 in fp32; once
in one of ZeRO 1 (DeepSpeed reads the norm), and of ZeRO 2 in fp32. With fp16, and with DeepSpeed's own optimizers,
DeepSpeed reads the norm and its flags several times per step. tests/training/test_waits.py counts.

Letters: b samples of a micro batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.parallel.zero import (
    build_kernel,
    capture_optimizer,
    forget_initial_step,
    prepare_deepspeed,
    restore_optimizer,
)
from cogvideox.training.batch_sizes import read_batch_sizes
from cogvideox.training.deepspeed_config import engine_config
from cogvideox.training.guard import Guard
from cogvideox.training.lr_schedules import Schedule
from cogvideox.training.master_weights import MasterWeights
from cogvideox.training.optimizers import (
    AdamSettings,
    build_adam,
    deepspeed_section_for,
    parameter_groups,
)


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gave on this process; tensors are scalars on the device.

    loss: fp32, mean over this process's samples. grad_norm: before clipping, over all processes. is_bad: true when
    loss or gradients were not finite (an overflow that fp16's loss scale absorbs doesn't count).
    """

    loss: Tensor
    grad_norm: Tensor
    is_bad: Tensor


class TrainEngine:
    """Owns the model from here on: in training and evaluation it is reached through this object only.

    model(batch) gives fp32 losses [b]. Its weights are loaded already: DeepSpeed copies them into its fp32 masters
    now.

    Raises:
        ConfigError: nothing trainable, batch sizes that contradict each other for this number of processes, an
        optimizer that can't be compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        section: DeepSpeedSection,
        optimizer: AdamSettings,
        schedule: Schedule,
        groups: ProcessGroups,
    ) -> None:
        self.sizes = read_batch_sizes(section, groups.world_size)
        self._schedule, self._peak_lr, self._groups = schedule, optimizer.lr, groups
        parameters = parameter_groups(model, optimizer.weight_decay)
        trainable = sum(each.numel() for group in parameters for each in group["params"])
        config = engine_config(section, self.sizes, trainable, by_deepspeed=optimizer.by_deepspeed)
        prepare_deepspeed(groups.device)
        client, self._masters = None, None
        if optimizer.by_deepspeed:
            groups.attempt(lambda: build_kernel(for_offload=optimizer.is_offloaded))
            config.section["optimizer"] = deepspeed_section_for(optimizer)
        elif config.accumulate is None:
            client = build_adam(parameters, optimizer)
        else:
            self._masters = MasterWeights(parameters, config.accumulate)
            client = build_adam(self._masters.groups, optimizer)
            client.get_grads_for_reduction = self._masters.get_grads_for_reduction  # type: ignore[attr-defined]
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=client,
            model_parameters=parameters,
            config=config.section,
            dist_init_required=False,
        )
        forget_initial_step(self._engine)
        # A plain torch optimizer (ZeRO 0) is the one case in which DeepSpeed doesn't measure the gradients.
        self._is_plain = self._engine.optimizer is self._engine.basic_optimizer
        self._is_guarded = config.is_guarded
        if config.is_guarded:
            Guard(self._engine.basic_optimizer, self._grad_norm, config.clip)
        if self._masters is not None:
            self._masters.read_weights()  # DeepSpeed has sent those of the first process to all
            self._engine.basic_optimizer.register_step_post_hook(self._masters.write_weights)

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
            self._engine.step()
        norm = self._norm if self._is_plain else self._read_norm()
        is_bad = ~(torch.isfinite(total) & torch.isfinite(norm))
        if not self._is_guarded:  # in fp16 a norm may be infinite in the search for a loss scale
            is_bad = ~torch.isfinite(total) | self._was_refused()
        return StepResult(total, norm, is_bad)

    def _grad_norm(self) -> Tensor:
        """Of the averaged gradients, before the optimizer's step."""
        if not self._is_plain:
            return self._engine.optimizer._global_grad_norm  # DeepSpeed has measured it over all slices
        groups = self._engine.basic_optimizer.param_groups
        gradients = [each.grad for group in groups for each in group["params"] if each.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        return self._norm

    def _read_norm(self) -> Tensor:
        """What DeepSpeed measured in the last step, as a scalar on the device."""
        norm = self._engine.get_global_grad_norm()
        if isinstance(norm, Tensor):
            return norm.float().to(self._groups.device, non_blocking=True)
        return torch.full((), 0.0 if norm is None else norm, device=self._groups.device)

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
        return capture_optimizer(self._engine, self._master_tensors())

    def restore(self, state: dict[str, Any]) -> None:
        """Raises: CheckpointError when the state belongs to another kind of run."""
        restore_optimizer(self._engine, state, self._master_tensors())

    def _master_tensors(self) -> list[Tensor] | None:
        return None if self._masters is None else self._masters.tensors

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds its own slice of the optimizer state."""
        return self._engine.zero_optimization_stage() > 0
