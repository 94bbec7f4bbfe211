"""Figures of the finished family: reconstruction, and what samples show.

Letters: b batch, t frames, h w pixels, c channels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.sampling.batches import VideoFormat
from cogvideox.sampling.jobs import SampleJob
from cogvideox.sampling.run import build_sampler, sample_latents
from cogvideox.vae.autoencoder import VideoAutoencoder
from PIL import Image
from torch import Tensor

from .captions import plain_caption, random_spec
from .measure import agreement
from .render import FPS, HEIGHT, SHAPES, WIDTH, ClipSpec, render
from .train_vae import to_float

HELD_OUT_SEED = 4711  # of clips that neither the VAE nor the transformer was trained on


def held_out_specs(count: int, shapes: tuple[str, ...] = SHAPES) -> list[ClipSpec]:
    """Clips for evaluation, from a seed of their own."""
    rng = random.Random(HELD_OUT_SEED)
    return [random_spec(rng, shapes) for _ in range(count)]


def to_bytes(video: Tensor) -> np.ndarray:
    """float b t c h w in about [-1, 1] -> uint8 [b, t, h, w, c]."""
    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 1, 3, 4, 2).numpy()


@torch.no_grad()
def reconstruct(vae: VideoAutoencoder, specs: Sequence[ClipSpec]) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Rendered clips, what fp32 encode (mode) and chunked decode make of them, and the PSNR of each in dB."""
    clips = np.stack([render(spec) for spec in specs])
    decoded = np.concatenate(
        [to_bytes(vae.decode(vae.encode(to_float(torch.from_numpy(clip[None]))).mode())) for clip in clips]
    )
    return clips, decoded, psnr(clips, decoded)


def psnr(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Of pairs of uint8 clips or images [b, ...], in dB."""
    errors = ((first.astype(np.float64) - second) ** 2).reshape(len(first), -1).mean(1)
    return [float(10 * np.log10(255**2 / error)) for error in errors]


def write_first_frames(clips: np.ndarray, folder: Path) -> list[Path]:
    """uint8 clips [b, t, h, w, c] -> a PNG of each clip's first frame."""
    files = [folder / f"{index:03d}.png" for index in range(len(clips))]
    for clip, file in zip(clips, files, strict=True):
        Image.fromarray(clip[0]).save(file)
    return files


@torch.no_grad()
def sample(
    model: VideoDiffusion,
    sampler_node: dict,
    prompts: Sequence[str],
    images: Sequence[Path | None] | None = None,
    seed: int = 0,
    batch: int = 8,
) -> np.ndarray:
    """One video per prompt, uint8 [b, t, h, w, c]; with `images`, from these files."""
    sampler = build_sampler(sampler_node)
    form = VideoFormat(num_latent_frames=5, height=HEIGHT, width=WIDTH, fps=FPS)
    images = images or [None] * len(prompts)
    jobs = [
        SampleJob(prompt, index, 0, seed, Path(), image)
        for index, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    ]
    videos = []
    for start in range(0, len(jobs), batch):
        latent = sample_latents(model, sampler, jobs[start : start + batch], form)
        videos.append(to_bytes(model.decode(latent)))
    return np.concatenate(videos)


def accuracy(specs: Sequence[ClipSpec], clips: np.ndarray) -> dict[str, float]:
    """Share of clips that show what their spec says, per property and for all four at once."""
    results = [agreement(spec, clip) for spec, clip in zip(specs, clips, strict=True)]
    shares = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
    shares["all four"] = float(np.mean([all(result.values()) for result in results]))
    return shares


def prompts_of(specs: Sequence[ClipSpec]) -> list[str]:
    """The plain caption of each."""
    return [plain_caption(spec) for spec in specs]
