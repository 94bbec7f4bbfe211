"""Sampling: jobs to videos, on this process's share of them.

Letters: b batch, f latent frames, c latent channels, y x latent height and width.
The noise of a video depends on its seed and the place of its prompt only: not on the batch, the process or
the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from cogvideox.config.schema import ComponentNode, Config, ModelConfig, SampleArgs
from cogvideox.config.targets import instantiate
from cogvideox.diffusion.samplers import Sampler
from cogvideox.diffusion.timesteps import gaussian
from cogvideox.errors import ConfigError, ShapeError, UserError
from cogvideox.log import get_logger
from cogvideox.model.build import build_model, has_lora, with_lora
from cogvideox.model.loading import load_transformer, read_lora
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.sampling.prompts import SampleJob, check_output_dir, plan_jobs, read_prompts, refuse_existing
from cogvideox.sampling.write_video import write_latent, write_video

if TYPE_CHECKING:
    from cogvideox.parallel.groups import ProcessGroups

_log = get_logger(__name__)


@dataclass(frozen=True)
class VideoFormat:
    """What every video of a run looks like: latent frames, pixels, frames per second; and which files are
    written."""

    num_latent_frames: int
    height: int
    width: int
    fps: float
    save_video: bool = True
    save_latent: bool = False


def run_sampling(config: Config, groups: ProcessGroups) -> list[Path]:
    """A whole run of sample_video.py on one of the processes. Returns the folders of this process's videos.

    Raises: UserError of the same text on every process.
    """
    args = config.sample_args
    jobs = _plan(args, groups)
    started = time.monotonic()
    error: UserError | None = None
    written: list[Path] = []
    try:
        model = load_for_sampling(config.model, args, groups.device)
        sampler = build_sampler(config.model.sampler_config)
        form = video_format(args)
        mine = groups.share(jobs)
        written = sample_jobs(model, sampler, mine, form, args.batch_size, show_progress=groups.is_first)
    except UserError as caught:
        error = caught
    groups.agree(error)
    seconds = time.monotonic() - started
    _log.info("%d videos below %s in %.0f s", len(jobs), args.output_dir, seconds)
    return written


def _plan(args: SampleArgs, groups: ProcessGroups) -> list[SampleJob]:
    """All jobs, on every process. Only the first one reads the terminal and looks for existing files."""
    jobs: list[SampleJob] = []
    error: UserError | None = None
    if groups.is_first:
        try:
            jobs = plan_jobs(read_prompts(args), args.num_samples, args.seed, args.output_dir)
            check_output_dir(args.output_dir)
            if not args.overwrite:
                refuse_existing(jobs, latents_only=args.only_save_latents)
        except UserError as caught:
            error = caught
    groups.agree(error)
    return groups.broadcast_object(jobs)


def load_for_sampling(config: ModelConfig, args: SampleArgs, device: torch.device) -> VideoDiffusion:
    """Build the model and load `args.load`; a checkpoint with adapters brings its own rank and alpha when the
    configuration has no lora_config.

    Raises: ConfigError, CheckpointError.
    """
    assert args.load is not None, "the configuration was checked"
    lora = read_lora(args.load)
    if lora is not None and not has_lora(config):
        _log.info("%s holds LoRA adapters: rank %d, alpha %g", args.load, lora.rank, lora.alpha)
        config = with_lora(config, lora.rank, lora.alpha)
    if args.lora_strength != 1.0 and lora is None:
        raise ConfigError(f"args.lora_strength is {args.lora_strength}, but {args.load} holds no LoRA adapters")
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    model = build_model(config, device=device, dtype=dtype, seed=args.seed)
    load_transformer(model, args.load)
    if lora is not None:
        model.transformer.mixins["lora"].set_strength(args.lora_strength)
    model.eval().requires_grad_(False)
    return model


def build_sampler(node: ComponentNode, num_steps: int | None = None) -> Sampler:
    """The configured sampler, with another number of steps when given. Raises: ConfigError."""
    sampler: Sampler = instantiate(node)
    return sampler if num_steps is None else sampler.with_steps(num_steps)


def video_format(args: SampleArgs) -> VideoFormat:
    """The format that `args` asks for."""
    height, width = args.sampling_image_size
    return VideoFormat(
        num_latent_frames=args.sampling_num_frames,
        height=height,
        width=width,
        fps=args.sampling_fps,
        save_video=not args.only_save_latents,
        save_latent=args.save_latents or args.only_save_latents,
    )


def sample_jobs(
    model: VideoDiffusion,
    sampler: Sampler,
    jobs: Sequence[SampleJob],
    form: VideoFormat,
    batch_size: int = 1,
    *,
    show_progress: bool = False,
) -> list[Path]:
    """Sample and write these jobs; their folders. No communication: give each process its own share.

    Raises: ShapeError for a format that the model can't make; DataError when a file can't be written.
    """
    check_format(model, form)
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    with tqdm(total=len(batches) * sampler.num_steps, desc="sampling", unit="step", disable=not show_progress) as bar:
        for batch in batches:
            latents = sample_latents(model, sampler, batch, form, on_step=lambda _: bar.update())
            for job, latent in zip(batch, latents, strict=True):
                _write(model, job, latent, form)
    return [job.folder for job in jobs]


def check_format(model: VideoDiffusion, form: VideoFormat) -> None:
    """Raises: ShapeError for a size that does not divide into latents and patches, naming the nearest ones
    that do."""
    _, patch_height, patch_width = model.transformer.network.patch_size
    sides = (("height", form.height, patch_height), ("width", form.width, patch_width))
    for name, pixels, patch in sides:
        step = model.vae.spatial_compression * patch
        if pixels < step or pixels % step:
            lower = pixels // step * step
            nearest = " or ".join(str(value) for value in (lower, lower + step) if value)
            raise ShapeError(f"{name} of {pixels} pixels: must be a multiple of {step}; nearest: {nearest}")


@torch.no_grad()
def sample_latents(
    model: VideoDiffusion,
    sampler: Sampler,
    jobs: Sequence[SampleJob],
    form: VideoFormat,
    on_step: Callable[[int], object] | None = None,
) -> Tensor:
    """Scaled latents fp32 [b, f, c, y, x] of a batch of jobs."""
    shape = model.latent_shape(form.num_latent_frames, form.height, form.width)
    context = model.encode_text([job.prompt for job in jobs])
    return sampler.sample(
        model.denoise,
        _noise(jobs, shape, "start").to(model.device),
        model.schedule,
        context,
        model.conditioner.null_context(len(jobs), context),
        step_noise=lambda step: _noise(jobs, shape, step).to(model.device),
        on_step=on_step,
    )


def _noise(jobs: Sequence[SampleJob], shape: Sequence[int], use: int | str) -> Tensor:
    return torch.stack([gaussian(shape, "sample", job.seed, job.prompt_index, use) for job in jobs])


def _write(model: VideoDiffusion, job: SampleJob, latent: Tensor, form: VideoFormat) -> None:
    if form.save_latent:
        write_latent(job.latent_path, latent / model.scale_factor)
    if form.save_video:
        write_video(job.video_path, _frames(model, latent), form.fps)


def _frames(model: VideoDiffusion, latent: Tensor) -> Iterator[Tensor]:
    """Latent [f, c, y, x] to pieces [t, 3, h, w], decoded as they are asked for."""
    return (chunk[0] for chunk in model.decode_chunks(latent[None]))
