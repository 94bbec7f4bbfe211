"""A training run on the simulated device: the program's own Trainer from its start to its summary, with phases
marked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.config.schema import Config
from cogvideox.geometry import Bucket
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.training.batch_sizes import read_batch_sizes
from cogvideox.training.trainer import Trainer
from torch import Tensor

from simulated_cuda.groups import start_groups
from simulated_cuda.stand_ins import CAPTION, ROOT, find, no_files, text_settings

Phase = Callable[[str], AbstractContextManager[object]]
# Where each phase of a run begins and ends; where one calls another, the inner one counts.
PHASES = {
    "training.trainer:prepare": "start",
    "training.setup:TrainEngine.__init__": "engine",
    "text.conditioner:Conditioner.encode": "text encoder",
    "model.video_diffusion:VideoDiffusion.encode": "VAE encode",
    "model.video_diffusion:VideoDiffusion.loss_of": "forward",
    "training.engine:deepspeed.DeepSpeedEngine.backward": "backward",
    "training.engine:deepspeed.DeepSpeedEngine.step": "optimizer",
    "training.trainer:held_out_loss": "evaluation",
    "training.trainer:sample_prompts": "preview",
    "training.evaluation:write_frames": "preview decode",
    "training.checkpoint:Checkpointer.save": "save",
}


@dataclass(frozen=True)
class Setting:
    """What is run of a configuration.

    gpus: processes, of which this one takes itself for the first. accumulation: micro batches of a step, at most; all
    after the second are like it. warm: the first step and the second step's first micro batch make only what stays:
    the optimizer's state, and gradients to add to; the one micro batch after that is like any of a run under way.
    evaluate: held-out loss, and
    preview: one video, both after the last step only. text_layers: of the text encoder, None for all.
    bucket: of the clips; None for the run's one with most tokens.
    """

    gpus: int = 1
    accumulation: int = 2
    warm: bool = True
    evaluate: bool = False
    preview: bool = True
    text_layers: int | None = None
    bucket: Bucket | None = None


def run_training(
    config: Config, setting: Setting, phase: Phase, on_warm: Callable[[], object] = lambda: None
) -> Trainer:
    """Train for two steps, in `DeviceTensors`. Returns the trainer, whose model and engine are still there.

    phase: gives the context that each part of PHASES runs in; on_warm: called when what follows is like a run under
    way.
    """
    groups = start_groups(setting.gpus)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = _short(config, setting, folder)
        settings = text_settings(config, setting.text_layers)
        stack.enter_context(no_files(config, settings, 4 * setting.gpus, setting.bucket))
        stack.enter_context(_marked(phase))
        if setting.warm:
            micro_batches = 2 * read_batch_sizes(config.deepspeed, setting.gpus).accumulation
            stack.enter_context(_cheap_until_last(micro_batches, on_warm))
        stack.enter_context(_evaluated_at_the_end_only())
        trainer = Trainer(config, groups)
        trainer.fit()
    return trainer


def _short(config: Config, setting: Setting, folder: str) -> Config:
    """Two steps of few micro batches into a temporary folder."""
    args, sizes = config.train_args, read_batch_sizes(config.deepspeed, setting.gpus)
    image = f"@@{ROOT / 'demo/images/red_ring.png'}" if config.model.noised_image_input else ""
    steps = args.sample_steps or 2
    args = replace(
        args,
        train_iters=2, save=folder, save_interval=2, log_interval=1, eval_interval=None, sample_steps=min(2, steps),
        eval_prompts=[f"{CAPTION}{image}"] if setting.preview else [], eval_split=0.1 if setting.evaluate else 0.0,
        valid_data=[], num_workers=0, warmup_steps=0, wandb=False, resume=None, device="cuda",
    )  # fmt: skip
    deepspeed = {key: value for key, value in config.deepspeed.items() if key != "train_batch_size"}
    deepspeed["train_micro_batch_size_per_gpu"] = sizes.micro
    deepspeed["gradient_accumulation_steps"] = min(setting.accumulation, sizes.accumulation)
    return replace(config, args=args, deepspeed=DeepSpeedSection(deepspeed))


@contextmanager
def _marked(phase: Phase) -> Iterator[None]:
    """Every call of a place in PHASES runs in its phase."""
    with ExitStack() as stack:
        for place, name in PHASES.items():
            owner, attribute, own = find(place)
            stack.enter_context(patch.object(owner, attribute, _within(own, name, phase)))
        yield


def _within(own: Callable[..., Any], name: str, phase: Phase) -> Callable[..., Any]:
    @wraps(own, updated=())
    def within(*args: Any, **kwargs: Any) -> Any:
        with phase(name):
            return own(*args, **kwargs)

    return within


@contextmanager
def _cheap_until_last(micro_batches: int, on_warm: Callable[[], object]) -> Iterator[None]:
    """In training, only the last micro batch goes through the model; the losses before it are sums of what trains."""
    own, seen = VideoDiffusion.forward, 0

    def forward(model: VideoDiffusion, batch: Any, *rest: Any) -> Tensor:
        nonlocal seen
        if not torch.is_grad_enabled():
            return own(model, batch, *rest)
        seen += 1
        if seen == micro_batches:
            on_warm()
            return own(model, batch, *rest)
        sums = [parameter.sum() for parameter in model.parameters() if parameter.requires_grad]
        return torch.stack(sums).float().sum().expand(len(batch.rows))

    with patch.object(VideoDiffusion, "forward", forward):
        yield


@contextmanager
def _evaluated_at_the_end_only() -> Iterator[None]:
    own = Trainer._evaluate

    def evaluate(trainer: Trainer, step: int) -> None:
        if step:
            own(trainer, step)

    with patch.object(Trainer, "_evaluate", evaluate):
        yield
