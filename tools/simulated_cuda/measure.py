"""The memory of one training run, part by part, and the work of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from cogvideox.config.buckets import largest_buckets
from cogvideox.config.schema import Config
from cogvideox.training.trainer import Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from simulated_cuda.launches import Launches
from simulated_cuda.live_memory import LiveMemory
from simulated_cuda.phases import OUTSIDE
from simulated_cuda.run import Setting, run_training
from simulated_cuda.tensors import DeviceTensors

# The phases whose work is counted.
_WORK = ("text encoder", "VAE encode", "forward", "backward", "preview decode")
_OF_WARM_UP = ("forward", "backward", "optimizer", OUTSIDE)


@dataclass(frozen=True)
class Memory:
    """Bytes on the first process's device.

    peaks: the most while each phase ran, everything included. The others are parts of it that stay: frozen and trained
    weights of the transformer, optimizer (fp32 masters and moments), gradients between micro batches, VAE and
    text_encoder, as far as they are there while the transformer runs. micro_batch, dtype: what it was counted for.
    """

    micro_batch: int
    dtype: str
    frozen: int
    trained: int
    optimizer: int
    gradients: int
    vae: int
    text_encoder: int
    peaks: dict[str, int]

    @property
    def training(self) -> int:
        """The most of a run without preview videos."""
        return max(size for phase, size in self.peaks.items() if not phase.startswith("preview"))

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """Of one micro batch in each phase: operators on the device, and bytes of their inputs and outputs."""

    launches: dict[str, int]
    touched: dict[str, int]


def measure(config: Config, setting: Setting) -> Memory:
    """Count the memory of a run of this configuration. Raises: UserError as training does."""
    with DeviceTensors(), LiveMemory() as live:
        trainer = run_training(config, setting, live.phase, lambda: live.forget(*_OF_WARM_UP))
        return _memory(live, trainer)


def measure_largest(config: Config, setting: Setting) -> Memory:
    """Count the memory of each of the run's largest buckets, and take the most of every phase."""
    found = [measure(config, replace(setting, bucket=bucket)) for bucket in largest_buckets(config)]
    phases = {phase: max(each.peaks.get(phase, 0) for each in found) for phase in found[0].peaks}
    return replace(found[0], peaks=phases)


def measure_with_work(config: Config, setting: Setting) -> tuple[Memory, Work]:
    """The same, with the work of a micro batch and of a preview video, which takes somewhat longer to count."""
    with DeviceTensors(), LiveMemory() as live, Launches() as launches:

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            with live.phase(name), launches.phase(name):
                yield

        def on_warm() -> None:
            live.forget(*_OF_WARM_UP)
            launches.forget()

        trainer = run_training(config, setting, phase, on_warm)
        counted = {name: launches.launches[name] for name in _WORK if name in launches.launches}
        return _memory(live, trainer), Work(counted, {name: launches.touched[name] for name in counted})


def _memory(live: LiveMemory, trainer: Trainer) -> Memory:
    parts = trainer._parts
    model = parts.model
    trained = [each for each in model.parameters() if each.requires_grad]
    frozen = [*(each for each in model.parameters() if not each.requires_grad), *model.buffers()]
    text = model.conditioner.parameters() if model.conditioner.encoder is not None else ()
    return Memory(
        micro_batch=parts.engine.sizes.micro,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        frozen=live.size(frozen),
        trained=live.size(trained),
        optimizer=live.size(_tensors(parts.engine.capture())),
        gradients=live.left["backward"] - live.left["optimizer"],
        vae=live.size(model.vae.parameters()),
        text_encoder=live.size(text),
        peaks=dict(live.peaks),
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    return (each for each in tree_leaves(value) if isinstance(each, Tensor))
