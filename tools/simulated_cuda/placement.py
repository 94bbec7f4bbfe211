"""A short run of a configuration that looks for device mistakes: a training step, evaluation, sampling and saving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

from cogvideox.config.schema import Config
from cogvideox.training.engine import TrainEngine
from torch import Tensor

from simulated_cuda.run import Setting, run_training
from simulated_cuda.tensors import DeviceTensors
from simulated_cuda.watch import Wait, Watch


@dataclass(frozen=True)
class Placement:
    """waits: of the host, how often each. without_gradient: names that train and got none; elsewhere: those whose
    gradient is not on the device."""

    waits: Counter[Wait]
    without_gradient: list[str]
    elsewhere: list[str]


def check_placement(
    config: Config, around_model: Callable[[], AbstractContextManager[object]] | None = None
) -> Placement:
    """Two whole steps. Raises: RuntimeError of torch for an operator that mixes devices.

    around_model: a context for the run, in which a test makes a mistake.
    """
    devices: dict[str, set[str]] = {}
    with DeviceTensors() as device, Watch(device) as watch, ExitStack() as stack:
        stack.enter_context(patch.object(TrainEngine, "__init__", _with_hooks(devices)))
        if around_model is not None:
            stack.enter_context(around_model())
        setting = Setting(accumulation=1, warm=False, evaluate=True, text_layers=1)
        run_training(config, setting, watch.phase)
    missing = [name for name, seen in devices.items() if not seen]
    return Placement(watch.waits, missing, [name for name, seen in devices.items() if seen - {"cuda"}])


def _with_hooks(devices: dict[str, set[str]]) -> Callable[..., None]:
    """TrainEngine's constructor, and after it a look at the gradient of every weight that trains."""
    own = TrainEngine.__init__

    @wraps(own)
    def build(engine: TrainEngine, model: Any, *rest: Any) -> None:
        own(engine, model, *rest)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                devices[name] = set()
                parameter.register_hook(_note_device(devices[name]))

    return build


def _note_device(seen: set[str]) -> Callable[[Tensor], None]:
    def note(gradient: Tensor) -> None:
        seen.add(gradient.device.type)

    return note
