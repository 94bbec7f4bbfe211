"""The transformer's training set: many rendered clips, encoded once by the demo's VAE.

Letters: b batch, t frames, h w pixels; f latent frames, z latent channels, y x latent height and width.
"""

from __future__ import annotations

import multiprocessing
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from cogvideox.diffusion.timesteps import LOG_SIGMA
from cogvideox.vae.autoencoder import VideoAutoencoder
from torch import Tensor

from .captions import random_spec
from .render import ClipSpec, render
from .train_vae import to_float

SEED = 7


def world_specs(count: int, seed: int = SEED) -> list[ClipSpec]:
    """Clips of the known world (never the new shape)."""
    rng = random.Random(seed)
    return [random_spec(rng) for _ in range(count)]


def encode_world(vae: VideoAutoencoder, count: int, path: Path, batch: int = 8) -> None:
    """Render and encode `count` clips; writes posterior means and deviations fp16 [b, f, z, y, x] with the specs."""
    specs = world_specs(count)
    means, deviations = [], []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        frames: list[np.ndarray] = []
        for clip in pool.imap(render, specs, chunksize=16):
            frames.append(clip)
            if len(frames) == batch or len(frames) + batch * len(means) == count:
                mean, deviation = encode(vae, torch.from_numpy(np.stack(frames)))
                means.append(mean.half())
                deviations.append(deviation.half())
                frames = []
                if len(means) % 100 == 0:
                    print(f"encoded {len(means) * batch} of {count}", flush=True)
    content = {"mean": torch.cat(means), "std": torch.cat(deviations), "specs": [asdict(s) for s in specs]}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@torch.no_grad()
def encode(vae: VideoAutoencoder, clips: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 clips [b, t, h, w, c] -> posterior mean and deviation fp32 [b, f, z, y, x]; bf16 inside."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(to_float(clips))
    return posterior.mean.float(), posterior.std.float()


def load_world(path: Path) -> tuple[Tensor, Tensor, list[ClipSpec]]:
    """Means, deviations and specs as `encode_world` wrote them."""
    content = torch.load(path, weights_only=True)
    return content["mean"], content["std"], [ClipSpec(**spec) for spec in content["specs"]]


@torch.no_grad()
def encode_images(vae: VideoAutoencoder, world: Path, path: Path, batch: int = 32) -> None:
    """The first frames of the world's clips as image-to-video training sees them, with noise on their pixels, drawn
    once each; writes posterior means and deviations fp16 [b, 1, z, y, x]."""
    specs = load_world(world)[2]
    generator = torch.Generator().manual_seed(SEED)
    means, deviations = [], []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        frames = pool.imap(_first_frame, specs, chunksize=64)
        for start in range(0, len(specs), batch):
            clips = np.stack([next(frames) for _ in specs[start : start + batch]])
            pixels = to_float(torch.from_numpy(clips))
            sigma = torch.exp(LOG_SIGMA[0] + LOG_SIGMA[1] * torch.randn(len(clips), generator=generator))
            pixels = pixels + sigma[:, None, None, None, None] * torch.randn(pixels.shape, generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(pixels)
            means.append(posterior.mean.half())
            deviations.append(posterior.std.half())
    torch.save({"mean": torch.cat(means), "std": torch.cat(deviations)}, path)


def _first_frame(spec: ClipSpec) -> np.ndarray:
    """uint8 [1, h, w, c]"""
    return render(spec)[:1]


def load_images(path: Path) -> tuple[Tensor, Tensor]:
    """Means and deviations as `encode_images` wrote them."""
    content = torch.load(path, weights_only=True)
    return content["mean"], content["std"]
