"""The whole way: a checkpoint sampled here, and exported and sampled by diffusers' pipeline, gives the same frames.

Both get the same starting noise and the same noise levels (diffusers' own; ours differ from them by up to 1e-3, see
test_samplers.py), and exact zeros as the unconditional text, which diffusers would replace by the embedding of "".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.config.load import load_config
from cogvideox.diffusion.guidance import ConstantGuidance, DynamicGuidance
from cogvideox.diffusion.samplers import DDIMSampler
from cogvideox.diffusion.schedule import NoiseSchedule, SamplingSchedule
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.sampling.run import load_for_sampling
from convert_weight_sat2hf import main as convert
from diffusers import CogVideoXPipeline
from tiny import FRAMES, HEIGHT, TEXT_LENGTH, WIDTH
from tiny_checkpoints import Checkpoints, write_checkpoints
from torch import Tensor

PROMPT = "a red square moves left"
STEPS = 5
TOLERANCE = 2e-4  # of pixels in 0..1 after five guided steps and the decoder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


class TheirLevels(NoiseSchedule):
    """The noise levels of diffusers' scheduler, for both the network's prediction and the steps."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.scheduler = scheduler

    def sampling(self, num_steps: int, *_: object) -> SamplingSchedule:
        self.scheduler.set_timesteps(num_steps)
        timesteps = self.scheduler.timesteps
        levels = self.scheduler.alphas_cumprod[timesteps].sqrt().float()
        return SamplingSchedule(timesteps, torch.cat([levels, torch.ones(1)]), levels)


def load_ours(checkpoints: Checkpoints, load: Path, strength: float = 1.0) -> VideoDiffusion:
    overrides = [
        f"args.load={load}",
        f"args.lora_strength={strength}",
        f"args.sampling_image_size=[{HEIGHT},{WIDTH}]",
        f"args.sampling_num_frames={(FRAMES - 1) // 4 + 1}",
    ]
    config = load_config([str(checkpoints.family.model_yaml)], overrides, "sample")
    return load_for_sampling(config.model, config.sample_args, torch.device("cpu"))


def export(checkpoints: Checkpoints, load: Path, output: Path, *flags: str) -> Any:
    base = [] if load == checkpoints.run else ["--base", str(checkpoints.family.model_yaml)]
    convert(["--checkpoint", str(load), *base, "--output_path", str(output), *flags])
    pipeline = CogVideoXPipeline.from_pretrained(output)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def start_noise() -> Tensor:
    shape = (1, (FRAMES - 1) // 4 + 1, 16, HEIGHT // 8, WIDTH // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def frames_ours(model: VideoDiffusion, scheduler: Any, guidance: ConstantGuidance | DynamicGuidance) -> Tensor:
    context = model.encode_text([PROMPT])
    null = model.conditioner.null_context(1, context)
    sampler = DDIMSampler(STEPS, guidance)
    latent = sampler.sample(model.denoise, start_noise(), TheirLevels(scheduler), context, null)
    return (model.decode(latent) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def frames_theirs(pipeline: Any, dynamic: bool) -> Tensor:
    context, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    return pipeline(
        prompt_embeds=context,
        negative_prompt_embeds=torch.zeros_like(context),
        latents=start_noise(),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        use_dynamic_cfg=dynamic,
        max_sequence_length=TEXT_LENGTH,
        output_type="pt",
    ).frames


def compare(model: VideoDiffusion, pipeline: Any, dynamic: bool = False) -> Tensor:
    guidance = DynamicGuidance(scale=3.0, num_steps=STEPS) if dynamic else ConstantGuidance(scale=3.0)
    theirs = frames_theirs(pipeline, dynamic)
    ours = frames_ours(model, pipeline.scheduler, guidance)
    assert ours.shape == theirs.shape == (1, FRAMES, 3, HEIGHT, WIDTH)
    assert theirs.std() > 0.1, "the video must have contents"
    assert (ours - theirs).abs().max() <= TOLERANCE
    return theirs


@pytest.mark.parametrize("dynamic", [False, True])
def test_published_checkpoint(checkpoints: Checkpoints, tmp_path: Path, dynamic: bool) -> None:
    model = load_ours(checkpoints, checkpoints.family.transformer)
    compare(model, export(checkpoints, checkpoints.family.transformer, tmp_path / "out"), dynamic)


def test_the_same_text_states(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = load_ours(checkpoints, checkpoints.family.transformer)
    pipeline = export(checkpoints, checkpoints.family.transformer, tmp_path / "out")
    theirs, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    torch.testing.assert_close(model.encode_text([PROMPT]), theirs, rtol=0, atol=1e-6)


def test_lora_run_beside_its_base_and_merged(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = load_ours(checkpoints, checkpoints.run)
    apart = export(checkpoints, checkpoints.run, tmp_path / "apart")
    without = frames_theirs(apart, dynamic=False)
    apart.load_lora_weights(tmp_path / "apart")
    with_lora = compare(model, apart)
    assert (with_lora - without).abs().max() > 0.05, "the adapters must have a visible effect"
    compare(model, export(checkpoints, checkpoints.run, tmp_path / "merged", "--merge_lora"))


def test_strength_is_the_weight_of_the_adapter(checkpoints: Checkpoints, tmp_path: Path) -> None:
    pipeline = export(checkpoints, checkpoints.run, tmp_path / "apart")
    pipeline.load_lora_weights(tmp_path / "apart", adapter_name="mine")
    pipeline.set_adapters("mine", 0.5)
    compare(load_ours(checkpoints, checkpoints.run, strength=0.5), pipeline)
    pipeline.unload_lora_weights()
    compare(load_ours(checkpoints, checkpoints.run, strength=0.0), pipeline)
