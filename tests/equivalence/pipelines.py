"""One video by this framework and by diffusers' pipeline, from the same noise, text and image.

Both get the same noise levels (diffusers' own; ours differ from them by up to 1e-3, see test_samplers.py), and exact
zeros as the unconditional text, which diffusers would replace by the embedding of "".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from cogvideox.config.load import load_config
from cogvideox.diffusion.guidance import ConstantGuidance, DynamicGuidance
from cogvideox.diffusion.samplers import DDIMSampler
from cogvideox.diffusion.schedule import NoiseSchedule, SamplingSchedule
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.sampling.run import load_for_sampling
from convert_weight_sat2hf import main as convert
from PIL import Image
from tiny import FRAMES, HEIGHT, TEXT_LENGTH, WIDTH
from torch import Tensor

PROMPT = "a red square moves left"
STEPS = 5
GUIDANCE = 3.0
TOLERANCE = 2e-4  # of pixels in 0..1 after five guided steps and the decoder
LATENT_FRAMES = (FRAMES - 1) // 4 + 1
_IMAGE_SEED = 7  # diffusers always samples the image's posterior


class TheirLevels(NoiseSchedule):
    """The noise levels of diffusers' scheduler, for both the network's prediction and the steps."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.scheduler = scheduler

    def sampling(self, num_steps: int, *_: Any) -> SamplingSchedule:
        self.scheduler.set_timesteps(num_steps)
        timesteps = self.scheduler.timesteps
        levels = self.scheduler.alphas_cumprod[timesteps].sqrt().float()
        return SamplingSchedule(timesteps, torch.cat([levels, torch.ones(1)]), levels)


def load_ours(model_yaml: Path, load: Path, *overrides: str) -> VideoDiffusion:
    """The model as sample_video.py loads it."""
    words = [
        f"args.load={load}",
        f"args.sampling_image_size=[{HEIGHT},{WIDTH}]",
        f"args.sampling_num_frames={LATENT_FRAMES}",
        *overrides,
    ]
    config = load_config([str(model_yaml)], words, "sample")
    return load_for_sampling(config.model, config.sample_args, torch.device("cpu"))


def export(output: Path, *arguments: str | Path) -> Any:
    """What convert_weight_sat2hf.py makes of them, opened by the class that its model_index.json names."""
    convert([*map(str, arguments), "--output_path", str(output)])
    pipeline = diffusers.DiffusionPipeline.from_pretrained(output)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def start_noise(frames: int = LATENT_FRAMES) -> Tensor:
    """[1, frames, 16, y, x]; frames counts padded latents."""
    shape = (1, frames, 16, HEIGHT // 8, WIDTH // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def first_frame() -> Tensor:
    """uint8 [1, 3, h, w]: coarse squares of colour."""
    squares = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(6))
    return squares.mul(255).byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


@torch.no_grad()
def frames_ours(model: VideoDiffusion, scheduler: Any, *, dynamic: bool = False) -> Tensor:
    """[1, t, 3, h, w] in 0..1."""
    guidance = DynamicGuidance(scale=GUIDANCE, num_steps=STEPS) if dynamic else ConstantGuidance(scale=GUIDANCE)
    context = model.encode_text([PROMPT])
    null = model.conditioner.null_context(1, context)
    noise = start_noise(model.latent_shape(LATENT_FRAMES, HEIGHT, WIDTH)[0])
    image_latent = None
    if model.image is not None:
        posterior = torch.randn(1, 16, 1, *noise.shape[3:], generator=torch.Generator().manual_seed(_IMAGE_SEED))
        image_latent = model.image_latent(first_frame(), LATENT_FRAMES, posterior.transpose(1, 2)).repeat(2, 1, 1, 1, 1)

    def denoise(noised: Tensor, timestep: Tensor, states: Tensor, level: Tensor | None = None) -> Tensor:
        return model.denoise(noised, timestep, states, level, image_latent)

    latent = DDIMSampler(STEPS, guidance).sample(denoise, noise, TheirLevels(scheduler), context, null)
    return (model.decode(latent) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def frames_theirs(pipeline: Any, *, dynamic: bool = False) -> Tensor:
    """[1, t, 3, h, w] in 0..1."""
    context, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    patch_frames = pipeline.transformer.config.patch_size_t or 1
    image = {}
    if "Image" in type(pipeline).__name__:
        image["image"] = Image.fromarray(first_frame()[0].permute(1, 2, 0).numpy())
        image["generator"] = torch.Generator().manual_seed(_IMAGE_SEED)
    return pipeline(
        **image,
        prompt_embeds=context,
        negative_prompt_embeds=torch.zeros_like(context),
        latents=start_noise(LATENT_FRAMES + -LATENT_FRAMES % patch_frames),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        use_dynamic_cfg=dynamic,
        max_sequence_length=TEXT_LENGTH,
        output_type="pt",
    ).frames


def compare(model: VideoDiffusion, pipeline: Any, *, dynamic: bool = False) -> Tensor:
    """Assert that both give the same frames, and return diffusers'."""
    theirs = frames_theirs(pipeline, dynamic=dynamic)
    ours = frames_ours(model, pipeline.scheduler, dynamic=dynamic)
    assert ours.shape == theirs.shape == (1, FRAMES, 3, HEIGHT, WIDTH)
    assert theirs.std() > 0.1, "the video must have contents"
    assert (ours - theirs).abs().max() <= TOLERANCE
    return theirs
