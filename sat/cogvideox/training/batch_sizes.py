"""How many clips there are in a step, on each process and in each micro batch, and how many tokens they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cogvideox.buckets import micro_batch_size
from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.config.schema import Config
from cogvideox.errors import ConfigError
from cogvideox.geometry import Bucket
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.training.preflight import data_section


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


def read_batch_sizes(section: DeepSpeedSection, processes: int) -> BatchSizes:
    """Batch sizes from the three keys that DeepSpeed knows; any that is missing follows from the others.

    Raises:
        ConfigError: they contradict each other for this number of processes.
    """
    total, micro = section.get("train_batch_size"), section.get("train_micro_batch_size_per_gpu")
    accumulation = section.get("gradient_accumulation_steps")
    if micro is not None and accumulation is not None:
        sizes = BatchSizes(micro, accumulation, processes)
    elif micro is not None:
        sizes = BatchSizes(micro, total // (micro * processes), processes)
    else:
        assert accumulation is not None, "the checked section has one of the factors"
        sizes = BatchSizes(total // (accumulation * processes), accumulation, processes)
    if min(sizes.micro, sizes.accumulation) < 1 or (total is not None and sizes.effective != total):
        raise ConfigError(
            f"deepspeed.train_batch_size: {total} is not train_micro_batch_size_per_gpu x gradient_accumulation_steps "
            f"x processes ({sizes.micro} x {sizes.accumulation} x {processes})"
        )
    return sizes


def micro_batch_sizes(config: Config, model: VideoDiffusion, buckets: Sequence[Bucket], micro: int) -> list[int]:
    """Clips of each bucket in a micro batch, by data.tokens_per_micro_batch."""
    budget = data_section(config).tokens_per_micro_batch
    return [micro_batch_size(model.geometry.num_video_tokens(*bucket), budget, micro) for bucket in buckets]


def tokens_per_sample(model: VideoDiffusion, bucket: Bucket) -> int:
    """Text and video tokens that one clip puts through the transformer."""
    network = model.transformer.network  # type: ignore[union-attr]
    return network.text_length + model.geometry.num_video_tokens(*bucket)
