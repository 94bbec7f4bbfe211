"""Real ZeRO checkpoints of a small module, saved by DeepSpeed in a group of processes, and the weights as they were.

<folder>/<case>/latest, <tag>/...      live_<case>.pt: {name: tensor}, trainable ones as fp32 masters
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CASES = {
    # Another optimizer of DeepSpeed's, whose shards don't say their stage.
    "stage1_fp32_grads": (1, {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}),
    "stage1": (1, {"bf16": {"enabled": True}}),
    "stage2": (2, {}),
    "stage3": (3, {"bf16": {"enabled": True}}),
}
FROZEN = "model.diffusion_model.frozen."
STEPS = 3


class Module(nn.Module):
    """Sizes that no number of ranks divides, a frozen layer, a buffer, and trainables in two parameter groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        inner = nn.Module()
        inner.first, inner.frozen, inner.last = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 11)
        inner.frozen.requires_grad_(False)
        inner.register_buffer("table", torch.arange(5.0))
        self.model = nn.Module()
        self.model.diffusion_model = inner

    def forward(self, batch: Tensor) -> Tensor:
        inner = self.model.diffusion_model
        return inner.last(inner.frozen(inner.first(batch))).square().mean()


def save_all(folder: Path) -> None:
    """Train and save every case; runs in each process of a group."""
    import deepspeed
    from cogvideox.parallel.groups import start_process_groups
    from cogvideox.parallel.zero import prepare_deepspeed

    groups = start_process_groups("cpu")
    prepare_deepspeed(groups.device)
    for case, (stage, precision) in CASES.items():
        module = Module()
        trainable = [each for each in module.parameters() if each.requires_grad]
        parameters = [
            {"params": [each for each in trainable if each.ndim > 1], "weight_decay": 0.1},
            {"params": [each for each in trainable if each.ndim == 1], "weight_decay": 0.0},
        ]
        engine, *_ = deepspeed.initialize(
            model=module, model_parameters=parameters, config=_config(stage, precision), dist_init_required=False
        )
        for step in range(STEPS):
            batch = torch.randn(2, 5, generator=torch.Generator().manual_seed(step))
            loss = engine(batch.to(torch.bfloat16 if precision else torch.float32))
            engine.backward(loss)
            engine.step()
        engine.save_checkpoint(str(folder / case), tag=f"global_step{STEPS}", client_state={"args": {"lr": 0.1}})
        live = _live_weights(engine, stage)
        if groups.is_first:
            torch.save(live, folder / f"live_{case}.pt")


def _config(stage: int, precision: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        **precision,
    }


def _live_weights(engine: Any, stage: int) -> dict[str, Tensor]:
    """Masters of what trains, everything else as it is in the module."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    live = {name: value.clone() for name, value in engine.module.named_buffers()}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            live[name] = safe_get_full_fp32_param(parameter).clone()
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            live[name] = parameter.detach().clone()
    return live
