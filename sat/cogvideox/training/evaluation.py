"""What a run is judged by: the loss on held-out clips, and videos of fixed prompts.

Both mean the same at every evaluation, on every number of processes and in every run: each held-out clip meets a
noise and a timestep that depend on the clip alone, with the timesteps spread evenly over the clips; each prompt has
its own seed.

Letters: b batch, t frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cogvideox import stopping
from cogvideox.data.rows import AnyBatch, drawn
from cogvideox.diffusion.samplers import Sampler
from cogvideox.errors import DataError, NotFiniteError
from cogvideox.log import get_logger
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.batches import VideoFormat
from cogvideox.sampling.jobs import SampleJob, folder_name
from cogvideox.sampling.prompts import Prompt
from cogvideox.sampling.run import sample_latents, write_frames
from cogvideox.transformer.lora import LoraLinear

_log = get_logger(__name__)
# Of evaluation and preview videos, whatever the run's own seed is, so that runs can be compared with each
# other.
EVALUATION_SEED = 20240806


@torch.no_grad()
def held_out_loss(
    losses_of: Callable[..., Tensor], batches: Iterable[AnyBatch], model: VideoDiffusion, groups: ProcessGroups
) -> float:
    """Mean loss over the held-out clips.

    losses_of: the engine in evaluation mode: (batch, randomness) -> fp32 [b]. batches: this process's share; rows
    that only fill it up are not counted.
    Raises: DataError, Stopped, on every process.
    """

    def sum_mine() -> Tensor:
        total, count = torch.zeros((), device=groups.device), 0
        for each in batches:
            stopping.check()
            batch, randomness = drawn(each, lambda rows: model.draw_fixed(rows, EVALUATION_SEED))
            losses = losses_of(batch.to(groups.device), randomness)
            for loss, counts in zip(losses, batch.rows.counted.tolist(), strict=True):
                if counts:  # on the host, which so waits for nothing
                    total, count = total + loss, count + 1
        return torch.stack([total, torch.full_like(total, count)])

    loss, count = groups.sum(groups.attempt(sum_mine)).tolist()
    return loss / count


@torch.no_grad()
def adapter_update(model: VideoDiffusion) -> float | None:
    """How much LoRA changes the weights: the mean over layers of |scale B A| / |W| (Frobenius); None without LoRA.

    Around 1e-4 after training the adapters do almost nothing: the rate, the scale or the number of steps is too small.
    """
    shares = []
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            update = torch.cat([b.float() @ a.float() for a, b in zip(layer.matrix_A, layer.matrix_B, strict=True)])
            shares.append(layer.scaling * update.norm() / layer.original.weight.float().norm())
    return float(torch.stack(shares).mean()) if shares else None


def sample_prompts(
    model: VideoDiffusion,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    form: VideoFormat,
    folder: Path,
    groups: ProcessGroups,
) -> None:
    """Write `<folder>/<n>_<prompt>.mp4` for each prompt, each on one of the processes; .png for a single frame.

    Raises:
        UserError, Stopped: on every process, when a video can't be made on any, or any was asked to stop.
    """
    jobs = [SampleJob(each.text, n, 0, EVALUATION_SEED, folder, each.image) for n, each in enumerate(prompts)]

    def sample_mine() -> None:
        for job in groups.share(jobs):
            try:
                (latent,) = sample_latents(model, sampler, [job], form)
            except NotFiniteError as error:  # no reason to lose the run; its losses will say more
                _log.warning("no preview: %s", error)
                continue
            name = f"{job.prompt_index}_{folder_name(job.prompt)}"
            try:
                write_frames(model, latent, form, folder / f"{name}.mp4", folder / f"{name}.png")
            except DataError as error:  # a full disk
                _log.warning("no preview: %s", error)

    groups.attempt(sample_mine)
