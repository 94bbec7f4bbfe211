"""A regression network in place of the video model, for what the engine does whatever the model is."""

from __future__ import annotations

import io
from typing import Any

import torch
from cogvideox.config.deepspeed_section import read_deepspeed
from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.config.report import Origin, Report
from cogvideox.config.tree import build as tree
from cogvideox.parallel.groups import ProcessGroups, start_process_groups
from cogvideox.training.deepspeed_config import read_dtype
from cogvideox.training.engine import TrainEngine
from cogvideox.training.lr_schedules import build_schedule
from cogvideox.training.optimizers import read_optimizer
from torch import Tensor, nn


class Toy(nn.Module):
    """Losses fp32 [b] of inputs [b, 8]; the first layer is frozen, as a base model under adapters is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3))
        self.net[0].requires_grad_(False)

    def forward(self, batch: Tensor) -> Tensor:
        weight = self.net[0].weight
        target = batch[:, :3].float().sin()
        return (self.net(batch.to(weight.dtype)).float() - target).square().mean(1)


def section(
    stage: int = 0, *, accumulation: int = 1, micro: int = 4, clip: float = 0.5, **extra: Any
) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95]}},
        **extra,
    }


def checked(given: dict[str, Any]) -> DeepSpeedSection:
    """As the check of a configuration hands the section on."""
    report = Report()
    section = read_deepspeed(tree(given, Origin("", None, "deepspeed")), report)
    report.raise_if_any()
    return section


def build(given: dict[str, Any], groups: ProcessGroups | None = None, schedule: str = "constant") -> TrainEngine:
    groups = groups or start_process_groups("cpu")
    section = checked(given)
    model = Toy().to(read_dtype(section, groups.device))
    return TrainEngine(model, section, read_optimizer(section), build_schedule(schedule, 20), groups)


def inputs(step: int, samples: int = 4) -> Tensor:
    return torch.randn(samples, 8, generator=torch.Generator().manual_seed(step))


def train(engine: TrainEngine, steps: range, world_size: int = 1, rank: int = 0) -> list[float]:
    """Losses of global batches of 4, split over ranks and micro batches in order."""
    losses = []
    for step in steps:
        mine = inputs(step).chunk(world_size)[rank]
        result = engine.step(step, mine.chunk(engine.sizes.accumulation))
        losses.append(float(result.loss))
    return losses


def after_three_steps(given: dict[str, Any], schedule: str = "constant") -> tuple[dict[str, Any], Any]:
    """Weights and optimizer state that went through a file; what three more steps make: losses and weights."""
    straight = build(given, schedule=schedule)
    train(straight, range(1, 4))
    file = io.BytesIO()
    torch.save({"weights": weights(straight), "optimizer": straight.capture()}, file)
    expected = train(straight, range(4, 7)), weights(straight)
    file.seek(0)
    return torch.load(file, weights_only=True), expected


def check_continues(engine: TrainEngine, saved: dict[str, Any], expected: tuple[list[float], Any]) -> None:
    """What `after_three_steps` saved goes on in this engine with the same bits."""
    engine.module.load_state_dict(saved["weights"])
    engine.restore(saved["optimizer"])
    losses, ends = expected
    assert train(engine, range(4, 7)) == losses
    assert all(torch.equal(ends[name], each) for name, each in weights(engine).items())


def weights(engine: TrainEngine) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}
