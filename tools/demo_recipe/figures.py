"""Measure the finished family and draw its contact sheet. demo/recipe.md quotes the numbers of demo/figures.json."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cogvideox.config.load import load_config
from cogvideox.model.build import build_model
from cogvideox.model.loading import load_transformer
from cogvideox.model.video_diffusion import VideoDiffusion

from .contact_sheet import contact_sheet
from .evaluate import accuracy, held_out_specs, prompts_of, psnr, reconstruct, sample, write_first_frames
from .render import NEW_SHAPE, render

NUM_PROMPTS, NUM_RECONSTRUCTED = 48, 24


def load_model(config_path: Path) -> tuple[VideoDiffusion, dict]:
    """A model of the demo with its stored weights, in fp32, and its sampler node."""
    config = load_config([str(config_path)], [], "train", partial=True)
    assert config.train_args.load is not None
    model = build_model(config.model, device="cpu", dtype=torch.float32, seed=0, weights_follow=True)
    load_transformer(model, config.train_args.load)
    model.eval().requires_grad_(False)
    return model, config.model.sampler_config


def write_figures(base: Path, rotary: Path, i2v: Path, demo: Path) -> None:
    """demo/figures.json, demo/contact_sheet.jpg and demo/members.jpg, from the three model files."""
    result = _measure_base(base, demo)
    specs = held_out_specs(NUM_PROMPTS)
    prompts, clips = prompts_of(specs), np.stack([render(spec) for spec in specs])
    from_text = sample(*load_model(rotary), prompts)
    with TemporaryDirectory() as folder:
        from_image = sample(*load_model(i2v), prompts, write_first_frames(clips, Path(folder)))
    first_frames = psnr(from_image[:, 0], clips[:, 0])
    result["rotary"] = {"sample_accuracy": _rounded(accuracy(specs, from_text))}
    result["i2v"] = {
        "sample_accuracy": _rounded(accuracy(specs, from_image)),
        "psnr_first_frame": round(float(np.mean(first_frames)), 2),
        "psnr_first_frame_worst": round(min(first_frames), 2),
    }
    shown = range(12)
    pairs = [clip for index in shown[:6] for clip in (clips[index], from_image[index])]
    names = [name for index in shown[:6] for name in (f"given: first frame of {prompts[index]}", "video from it")]
    labels = [f"5B layout: {prompts[index]}" for index in shown]
    contact_sheet([*(from_text[index] for index in shown), *pairs], [*labels, *names], demo / "members.jpg", columns=2)
    result["megabytes"] = round(sum(f.stat().st_size for f in demo.rglob("*") if f.is_file()) / 1e6, 2)
    (demo / "figures.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def _measure_base(config_path: Path, demo: Path) -> dict[str, Any]:
    """Of the VAE, and of the transformer of 2B's layout; writes demo/contact_sheet.jpg."""
    model, sampler = load_model(config_path)
    known = held_out_specs(NUM_RECONSTRUCTED)
    new = held_out_specs(8, (NEW_SHAPE,))
    clips, decoded, errors = reconstruct(model.vae, [*known, *new])
    specs = held_out_specs(NUM_PROMPTS)
    begin = time.perf_counter()
    samples = sample(model, sampler, prompts_of(specs))
    seconds = time.perf_counter() - begin
    _sheet(demo / "contact_sheet.jpg", clips, decoded, samples, prompts_of([*known, *new]), prompts_of(specs))
    return {
        "psnr_known": round(float(np.mean(errors[: len(known)])), 2),
        "psnr_known_worst": round(min(errors[: len(known)]), 2),
        "psnr_new_shape": round(float(np.mean(errors[len(known) :])), 2),
        "sample_accuracy": _rounded(accuracy(specs, samples)),
        "reconstruction_accuracy": _rounded(accuracy(known, decoded[: len(known)])),
        "sample_seconds_each": round(seconds / len(specs), 2),
    }


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 3) for name, share in shares.items()}


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
