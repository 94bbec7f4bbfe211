"""Train the demo's VAE from scratch: L1 + MSE, a small KL term, bf16 autocast, averaged weights.

Letters: b batch, t frames, h w pixels, c channels.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cogvideox.vae.autoencoder import VideoAutoencoder
from torch import Tensor, nn

from .captions import random_spec
from .optim import Average, MuonAndAdam, learning_rate
from .render import HEIGHT, NUM_FRAMES, WIDTH, render, render_variety

VAE_PARAMS = {"z_channels": 16, "ch": 16, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 1, "norm_num_groups": 8}
SEED = 2024
KL_WEIGHT = 5e-4
MUON_LR, ADAM_LR = 0.02, 3e-3


@dataclass(frozen=True)
class Phase:
    """Crops for a part of the run: (share of steps, frames, clips, height, width) alternatives with their odds."""

    steps: int
    crops: tuple[tuple[float, int, int, int, int], ...]


# Single images first (cheap, and everything but motion is learned there), then motion on crops, then whole clips.
PHASES = (
    Phase(450, ((1.0, 1, 8, 64, 64),)),
    Phase(2300, ((0.7, 9, 2, 48, 48), (0.3, NUM_FRAMES, 1, 48, 48))),
    Phase(500, ((1.0, NUM_FRAMES, 1, HEIGHT, WIDTH),)),
)
# A second run from where the first ended, with its own learning-rate curve.
MORE = (Phase(2000, ((0.6, 9, 2, 48, 48), (0.4, NUM_FRAMES, 1, HEIGHT, WIDTH))),)
MORE_PEAK = 0.6


def vae_clips(world: int, variety: int) -> Tensor:
    """Training clips uint8 [b, t, h, w, c]: the demo's world, and irregular shapes so that new shapes survive too."""
    rng = random.Random(SEED)
    clips = [render(random_spec(rng)) for _ in range(world)]
    clips += [render_variety(SEED * 1000 + index) for index in range(variety)]
    return torch.from_numpy(np.stack(clips))


def to_float(clips: Tensor) -> Tensor:
    """uint8 b t h w c -> float b t c h w in [-1, 1]."""
    return clips.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0


def build() -> VideoAutoencoder:
    """Random weights. Scale maps start at one and the posterior narrow, so that signals pass from the start."""
    torch.manual_seed(SEED)
    vae = VideoAutoencoder(**VAE_PARAMS).train()
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv3d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if "shortcut" in name else "relu")
            nn.init.zeros_(module.bias)
            if ".conv_y" in name or ".conv_b" in name:
                nn.init.normal_(module.weight, std=0.1)
                nn.init.constant_(module.bias, 1.0 if ".conv_y" in name else 0.0)
            elif ".conv2." in name:
                module.weight.data.mul_(0.3)
    vae.encoder.conv_out.conv.bias.data[vae.z_channels :] = -4.0
    return vae


def train(
    folder: Path,
    phases: tuple[Phase, ...] = PHASES,
    world: int = 2000,
    variety: int = 1200,
    start: Path | None = None,
    peak: float = 1.0,
) -> None:
    """Train, from the weights in `start` if given; writes folder/3d-vae.pt about every two minutes and at the end.

    `peak` scales the learning rates.
    """
    clips = vae_clips(world, variety)
    vae = build()
    if start is not None:
        stored = torch.load(start, weights_only=True)["state_dict"]
        vae.load_state_dict({name: value.float() for name, value in stored.items()})
    optimizer = _optimizer(vae)
    average = Average(vae, 0.998)
    total = sum(phase.steps for phase in phases)
    begin = last_saved = time.perf_counter()
    recent: list[float] = []
    schedule = [phase for phase in phases for _ in range(phase.steps)]
    for step, phase in enumerate(schedule):
        loss, error = _loss(vae, to_float(_pick(clips, phase)))
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step(peak * learning_rate(step / total))
        average.update(step)
        recent.append(error)
        if step % 50 == 49:
            psnr = 10 * math.log10(4 / (sum(recent) / len(recent)))
            seconds = time.perf_counter() - begin
            print(f"vae step {step + 1} of {total} {seconds:.0f}s psnr {psnr:.2f}", flush=True)
            recent = []
        if time.perf_counter() - last_saved > 120:
            last_saved = time.perf_counter()
            save(folder, average.values)
    save(folder, average.values)


def save(folder: Path, values: dict[str, Tensor]) -> None:
    """Write 3d-vae.pt in half precision, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in values.items()}
    torch.save({"state_dict": state}, folder / "3d-vae.pt.part")
    (folder / "3d-vae.pt.part").replace(folder / "3d-vae.pt")


def _optimizer(vae: VideoAutoencoder) -> MuonAndAdam:
    matrices, others = [], []
    for name, parameter in vae.named_parameters():
        ends = "conv_in." in name or "coder.conv_out" in name or ".conv_y" in name or ".conv_b" in name
        (others if parameter.ndim < 4 or ends else matrices).append(parameter)
    return MuonAndAdam(matrices, others, MUON_LR, ADAM_LR)


def _pick(clips: Tensor, phase: Phase) -> Tensor:
    """Random crops in space and time, uint8 [b, t, h, w, c]."""
    odds = torch.tensor([crop[0] for crop in phase.crops])
    _, frames, batch, height, width = phase.crops[int(torch.multinomial(odds, 1))]
    picked = []
    for index in torch.randint(len(clips), (batch,)).tolist():
        start = int(torch.randint(NUM_FRAMES - frames + 1, ()))
        top, left = int(torch.randint(HEIGHT - height + 1, ())), int(torch.randint(WIDTH - width + 1, ()))
        picked.append(clips[index, start : start + frames, top : top + height, left : left + width])
    return torch.stack(picked)


def _loss(vae: VideoAutoencoder, video: Tensor) -> tuple[Tensor, float]:
    """Total loss and the mean squared error of the reconstruction (range 2)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(video)
        decoded = vae.decode(posterior.sample())
    difference = decoded.float() - video
    square = difference.square().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return difference.abs().mean() + 2 * square + KL_WEIGHT * kl, float(square.detach())
