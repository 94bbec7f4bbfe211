"""Measure the finished family and draw its contact sheet. demo/recipe.md quotes the numbers of demo/figures.json."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from cogvideox.config.load import load_config
from cogvideox.model.build import build_model
from cogvideox.model.loading import load_transformer
from cogvideox.model.video_diffusion import VideoDiffusion

from .contact_sheet import contact_sheet
from .evaluate import accuracy, held_out_specs, prompts_of, reconstruct, sample
from .render import NEW_SHAPE

NUM_PROMPTS, NUM_RECONSTRUCTED = 48, 24


def load_base(config_path: Path, demo: Path) -> tuple[VideoDiffusion, dict]:
    """The demo's base model in fp32, and its sampler node."""
    config = load_config([str(config_path)], [], "train", partial=True).model
    model = build_model(config, device="cpu", dtype=torch.float32, seed=0)
    load_transformer(model, str(demo / "transformer"))
    model.eval().requires_grad_(False)
    return model, config.sampler_config


def write_figures(config_path: Path, demo: Path) -> None:
    """demo/figures.json, demo/contact_sheet.png."""
    model, sampler = load_base(config_path, demo)
    known = held_out_specs(NUM_RECONSTRUCTED)
    new = held_out_specs(8, (NEW_SHAPE,))
    clips, decoded, psnr = reconstruct(model.vae, [*known, *new])
    specs = held_out_specs(NUM_PROMPTS)
    begin = time.perf_counter()
    samples = sample(model, sampler, prompts_of(specs))
    seconds = time.perf_counter() - begin
    result = {
        "psnr_known": round(float(np.mean(psnr[: len(known)])), 2),
        "psnr_known_worst": round(min(psnr[: len(known)]), 2),
        "psnr_new_shape": round(float(np.mean(psnr[len(known) :])), 2),
        "sample_accuracy": {name: round(share, 3) for name, share in accuracy(specs, samples).items()},
        "reconstruction_accuracy": {
            name: round(share, 3) for name, share in accuracy(known, decoded[: len(known)]).items()
        },
        "sample_seconds_each": round(seconds / len(specs), 2),
        "megabytes": round(sum(f.stat().st_size for f in demo.rglob("*") if f.is_file()) / 1e6, 2),
    }
    (demo / "figures.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    _sheet(demo / "contact_sheet.png", clips, decoded, samples, prompts_of([*known, *new]), prompts_of(specs))


def _sheet(
    path: Path,
    clips: np.ndarray,
    decoded: np.ndarray,
    samples: np.ndarray,
    clip_names: list[str],
    prompts: list[str],
) -> None:
    """Left: samples for 12 prompts. Right: rendered clips, each above its reconstruction."""
    pairs, names = [], []
    for index in (0, 1, 2, 3, -1, -2):
        pairs += [clips[index], decoded[index]]
        names += [f"rendered: {clip_names[index]}", "through the VAE"]
    samples12 = [samples[index] for index in range(12)]
    contact_sheet([*samples12, *pairs], [*prompts[:12], *names], path, columns=2)
