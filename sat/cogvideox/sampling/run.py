"""Sampling: jobs to videos, on this process's share of them.

Letters: b batch, f latent frames, c latent channels, y x latent height and width; h w pixels.
The noise of a video depends on its seed and the place of its prompt only: not on the batch, the process or
the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from cogvideox import stopping
from cogvideox.config.schema import ComponentNode, Config, ModelConfig, SampleArgs
from cogvideox.config.targets import instantiate
from cogvideox.data.images import read_image
from cogvideox.data.media import Media
from cogvideox.data.transforms import fit_to_bucket
from cogvideox.diffusion.samplers import Denoise, Sampler
from cogvideox.diffusion.timesteps import gaussian, to_device
from cogvideox.errors import ConfigError, NotFiniteError, UserError
from cogvideox.log import get_logger
from cogvideox.model.build import check_precision, draft_model, has_lora, place_model, place_text_encoder, with_lora
from cogvideox.model.device_memory import fit_decoding
from cogvideox.model.encode_captions import encode_prompts
from cogvideox.model.files import model_files
from cogvideox.model.loading import check_transformer, load_transformer, read_lora
from cogvideox.model.memory import advise_on_memory, sampling_advice
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.sampling.batches import Batch, VideoFormat, check_format, make_batches
from cogvideox.sampling.jobs import SampleJob, check_output_dir, main_output, read_jobs, refuse_existing
from cogvideox.sampling.next_steps import after_sampling
from cogvideox.sampling.trained_settings import warn_of_changes
from cogvideox.sampling.write_video import to_uint8, write_latent, write_png, write_video
from cogvideox.weights.integrity import FileChecks
from cogvideox.weights.runs import find_weights

if TYPE_CHECKING:
    from cogvideox.parallel.groups import ProcessGroups

_log = get_logger(__name__)
_SHOWN_FILES = 8


def run_sampling(config: Config, groups: ProcessGroups) -> list[Path]:
    """A whole run of sample_video.py on one of the processes. Returns the folders of this process's videos.

    Raises: UserError of the same text on every process; Stopped, on every process, when it was asked to stop: the
        videos that are under way are dropped.
    """
    args = config.sample_args
    load = groups.first_only(lambda: find_weights(args.load or "", args.save))
    args = replace(args, load=str(load))
    config = replace(config, args=args)
    jobs = _plan(config, groups)
    groups.attempt(lambda: read_lora(load))  # on every machine, before all of them build together
    started = time.monotonic()
    mine = groups.share(jobs)
    prompts = [job.prompt for job in mine]
    model = groups.attempt(lambda: _load_checked(config.model, args, groups, prompts))
    done: list[SampleJob] = []

    def sample() -> list[Path]:
        with advise_on_memory(*sampling_advice(config.model, args)):
            return sample_batches(
                model,
                build_sampler(config.model.sampler_config),
                make_batches(mine, args, model.patch_frames),
                show_progress=groups.is_first,
                on_done=done.append,
            )

    with stopping.deferred():
        try:
            written = groups.attempt(sample)
        except stopping.Stopped as stop:
            raise _stopped(stop, sum(groups.gather_objects(len(done))), len(jobs), args) from None
        stopping.saved()
    seconds = time.monotonic() - started
    count = f"{len(jobs)} video{'s' if len(jobs) != 1 else ''}"
    _log.info("%s in %.0f s below %s\n%s", count, seconds, _folder_of(jobs), _listed(jobs, args))
    _log.info("%s", after_sampling(config, jobs, groups.world_size))
    return written


def _load_checked(
    config: ModelConfig, args: SampleArgs, groups: ProcessGroups, prompts: Sequence[str]
) -> VideoDiffusion:
    """The model with the contexts of this process's prompts. The files that it is loaded from are compared with their
    manifests, once on each machine.

    Raises: UserError.
    """
    files = model_files(config, args.load) if groups.local_rank == 0 else []
    advice = sampling_advice(config, args)
    with advise_on_memory(*advice), FileChecks(files, verify=args.verify_weights) as checks:
        model = load_for_sampling(config, args, groups.device, prompts)
        checks.wait()
    return model


def _stopped(stop: stopping.Stopped, done: int, planned: int, args: SampleArgs) -> stopping.Stopped:
    if not done:
        return stop.after(f"none of {planned} videos was finished, nothing was saved", saved=False)
    stopping.saved()
    return stop.after(
        f"{done} of {planned} videos are finished, below {args.output_dir}; the same command with args.overwrite=true "
        "makes all of them, the same ones as far as they exist",
        saved=True,
    )


def _folder_of(jobs: Sequence[SampleJob]) -> Path:
    return jobs[0].folder.parent.parent


def _listed(jobs: Sequence[SampleJob], args: SampleArgs) -> str:
    """The first files that were written, one a line."""
    lines = [f"  {main_output(job, args)}" for job in jobs[:_SHOWN_FILES]]
    return "\n".join(lines + (["  ..."] if len(jobs) > _SHOWN_FILES else []))


def _plan(config: Config, groups: ProcessGroups) -> list[SampleJob]:
    """All jobs, on every process. Only the first one reads the terminal and images, and looks for existing files."""
    args = config.sample_args
    jobs: list[SampleJob] = []
    error: UserError | None = None
    if groups.is_first:
        try:
            jobs = read_jobs(config)
            check_output_dir(args.output_dir)
            if not args.overwrite:
                refuse_existing([main_output(job, args) for job in jobs])
        except UserError as caught:
            error = caught
    groups.agree(error)
    return groups.broadcast_object(jobs)


def load_for_sampling(
    config: ModelConfig, args: SampleArgs, device: torch.device, prompts: Sequence[str] | None = None
) -> VideoDiffusion:
    """Build the model and load `args.load`; a checkpoint with adapters brings its own rank and alpha when the
    configuration has no lora_config. Settings other than those of the checkpoint's training run are warned of.

    prompts: all that will be sampled. They are encoded before the transformer is loaded, and the text encoder ends,
    unless `args.text_encoder_device` is device. None: nobody knows yet, and it stays.
    Raises: ConfigError, CheckpointError, DataError, Stopped.
    """
    assert args.load is not None, "the configuration was checked"
    warn_of_changes(config, args.load)
    lora = read_lora(args.load)
    if lora is not None and not has_lora(config):
        _log.info("%s holds LoRA adapters: rank %d, alpha %g", args.load, lora.rank, lora.alpha)
        config = with_lora(config, lora.rank, lora.alpha)
    if lora is None and has_lora(config):
        _log.warning(
            "%s holds no LoRA: these videos are the base model's, although the configuration has lora_config; "
            "to sample a LoRA give its run folder, args.load=ckpts/my_run",
            args.load,
        )
    if args.lora_strength != 1.0 and lora is None:
        raise ConfigError(f"args.lora_strength is {args.lora_strength}, but {args.load} holds no LoRA adapters")
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    check_precision(device, dtype)
    model = draft_model(config, dtype=dtype, seed=args.seed, weights_follow=True)
    check_transformer(model, args.load)
    encoder_device = torch.device("cpu") if args.text_encoder_device == "cpu" else device
    if prompts is None or args.text_encoder_device == "device":
        place_text_encoder(model, config, encoder_device, dtype)
    else:
        encode_prompts(model, config, prompts, encoder_device, dtype)
    place_model(model, config, device, dtype)
    load_transformer(model, args.load, bases=[args.base_model] if args.base_model else ())
    if lora is not None:
        model.transformer.mixins["lora"].set_strength(args.lora_strength)
    model.eval().requires_grad_(False)
    return model


def build_sampler(node: ComponentNode, num_steps: int | None = None) -> Sampler:
    """The configured sampler, with another number of steps when given. Raises: ConfigError."""
    sampler: Sampler = instantiate(node)
    return sampler if num_steps is None else sampler.with_steps(num_steps)


def sample_batches(
    model: VideoDiffusion,
    sampler: Sampler,
    batches: Sequence[Batch],
    *,
    show_progress: bool = False,
    on_done: Callable[[SampleJob], object] = lambda job: None,
) -> list[Path]:
    """Sample and write these jobs; their folders. No communication: give each process its own share.

    on_done: called with each job whose files are written.
    Raises: ShapeError for a format that the model can't make, before anything is sampled; DataError when a file can't
    be read or written; Stopped.
    """
    for form, _ in batches:
        check_format(model, form)
        fit_decoding(model.vae, form.height, form.width, model.device)
    with tqdm(total=len(batches) * sampler.num_steps, desc="sampling", unit="step", disable=not show_progress) as bar:
        for form, jobs in batches:
            latents = sample_latents(model, sampler, jobs, form, lambda _: bar.update())
            for job, latent in zip(jobs, latents, strict=True):
                _write(model, job, latent, form)
                on_done(job)
    return [job.folder for _, jobs in batches for job in jobs]


@torch.no_grad()
def sample_latents(
    model: VideoDiffusion,
    sampler: Sampler,
    jobs: Sequence[SampleJob],
    form: VideoFormat,
    on_step: Callable[[int], object] | None = None,
) -> Tensor:
    """Scaled latents fp32 [b, f, c, y, x], padded, of a batch of jobs.

    Raises: DataError when an image can't be read; ShapeError for a size beyond the network's positions; NotFiniteError
        instead of latents that would be decoded to black; Stopped, between two steps.
    """

    def stepped(step: int) -> None:
        stopping.check()
        if on_step is not None:
            on_step(step)

    stopping.check()
    shape = model.latent_shape(form.num_latent_frames, form.height, form.width)
    context = model.encode_text([job.prompt for job in jobs])
    latents = sampler.sample(
        _denoiser(model, jobs, form),
        to_device(_noise(jobs, shape, "start"), model.device),
        model.schedule,
        context,
        model.conditioner.null_context(len(jobs), context),
        step_noise=lambda step: to_device(_noise(jobs, shape, step), model.device),
        on_step=stepped,
    )
    _check_finite(latents, jobs, context.dtype)
    return latents


def _check_finite(latents: Tensor, jobs: Sequence[SampleJob], dtype: torch.dtype) -> None:
    finite = latents.isfinite().flatten(1).all(1).tolist()
    broken = next((job for job, is_finite in zip(jobs, finite, strict=True) if not is_finite), None)
    if broken is not None:
        kind = str(dtype).removeprefix("torch.")
        raise NotFiniteError(
            f"the video of {broken.prompt!r} came to NaN or infinity in {kind}: if the weights are sound, their "
            "numbers don't fit this type; the 5B and 1.5 models need args.bf16=true args.fp16=false"
        )


def _denoiser(model: VideoDiffusion, jobs: Sequence[SampleJob], form: VideoFormat) -> Denoise:
    """The model with the jobs' images. Both branches of guidance see the image: only the text is left out."""
    if model.image is None:
        return model.denoise
    images = torch.stack([first_frame(job, form) for job in jobs])
    image_latent = model.image_latent(images, form.num_latent_frames)

    def denoise(noised_latent: Tensor, timestep: Tensor, context: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
        copies = len(noised_latent) // len(image_latent)  # 2 when both branches come in one batch
        repeated = image_latent.repeat(copies, 1, 1, 1, 1)
        return model.denoise(noised_latent, timestep, context, sqrt_alpha_bar, repeated)

    return denoise


def first_frame(job: SampleJob, form: VideoFormat) -> Tensor:
    """The job's image as training sees a frame: resized to cover the format and cropped, uint8 [3, h, w]. Raises:
    DataError."""
    assert job.image is not None, f"{job.prompt!r} has no image, which this image-to-video model starts from"
    return fit_to_bucket(read_image(Media(str(job.image)))[None], (form.height, form.width))[0]


def _noise(jobs: Sequence[SampleJob], shape: Sequence[int], use: int | str) -> Tensor:
    return torch.stack([gaussian(shape, "sample", job.seed, job.prompt_index, use) for job in jobs])


def _write(model: VideoDiffusion, job: SampleJob, latent: Tensor, form: VideoFormat) -> None:
    if form.save_latent:
        write_latent(job.latent_path, model.unpad(latent) / model.scale_factor)
    if form.save_video:
        write_frames(model, latent, form, job.video_path, job.picture_path)


def write_frames(model: VideoDiffusion, latent: Tensor, form: VideoFormat, video: Path, picture: Path) -> None:
    """Decode a padded latent [f, c, y, x] into `video`, or into `picture` when it is a single frame. Raises:
    DataError."""
    if form.num_latent_frames == 1:
        (frame,) = next(decoded_frames(model, latent))
        write_png(picture, to_uint8(frame).permute(1, 2, 0).cpu())
    else:
        write_video(video, decoded_frames(model, latent), form.fps)


def decoded_frames(model: VideoDiffusion, latent: Tensor) -> Iterator[Tensor]:
    """Padded latent [f, c, y, x] to pieces [t, 3, h, w], decoded as they are asked for. Raises: Stopped, between two
    pieces."""
    for chunk in model.decode_chunks(latent[None]):
        stopping.check()
        yield chunk[0]
