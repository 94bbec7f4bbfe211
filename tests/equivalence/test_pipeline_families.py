"""As test_pipeline.py, for the families beyond 2B: rotary and learned positions, padded frames, the first frame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from convert_weight_hf2sat import main as hf2sat
from equivalence.pipelines import TOLERANCE, compare, export, frames_ours, frames_theirs, load_ours
from tiny import FamilyOf


@pytest.mark.parametrize("name", ["5b", "5b_i2v", "1.5"])
def test_published_settings(name: str, family_of: FamilyOf, tmp_path: Path) -> None:
    """9 frames in, 9 frames out, also where 3 latents are padded to 4."""
    family = family_of(name)
    model = load_ours(family.model_yaml, family.transformer)
    compare(model, export(tmp_path / "out", "--checkpoint", family.transformer, "--base", family.model_yaml))


@pytest.mark.parametrize("scale", [0.7, 1 / 0.7])
@pytest.mark.parametrize("name", ["5b_i2v", "1.5_i2v"])
def test_image_scales_that_diffusers_knows(name: str, scale: float, family_of: FamilyOf, tmp_path: Path) -> None:
    """scale_factor and its inverse are a key of the VAE's configuration."""
    family, setting = family_of(name), f"model.image_latent_scale={scale}"
    model = load_ours(family.model_yaml, family.transformer, setting)
    words = ("--checkpoint", family.transformer, "--base", family.model_yaml, setting)
    compare(model, export(tmp_path / "out", *words), dynamic=True)


def test_image_scale_of_one(family_of: FamilyOf, tmp_path: Path) -> None:
    """The default of 1.5-I2V: diffusers' pipeline can't scale so, and shows another video, unless it is folded in."""
    family = family_of("1.5_i2v")
    model = load_ours(family.model_yaml, family.transformer)
    words = ("--checkpoint", family.transformer, "--base", family.model_yaml)
    plain = export(tmp_path / "plain", *words)
    difference = (frames_ours(model, plain.scheduler) - frames_theirs(plain)).abs().max()
    assert difference > 20 * TOLERANCE, "if diffusers has learnt it, the note and --fold_image_scale can go"
    compare(model, export(tmp_path / "folded", *words, "--fold_image_scale"))


@pytest.mark.parametrize("name", ["5b_i2v", "1.5"])
def test_the_way_back(name: str, family_of: FamilyOf, tmp_path: Path) -> None:
    """A diffusers pipeline, imported with its YAML and sampled here, gives its own frames."""
    family = family_of(name)
    pipeline = export(tmp_path / "hf", "--checkpoint", family.transformer, "--base", family.model_yaml)
    hf2sat([str(tmp_path / "hf"), "--output_path", str(tmp_path / "sat")])
    plain = ("args.fp16=false", "args.bf16=false")
    compare(load_ours(tmp_path / "sat" / "model.yaml", tmp_path / "sat" / "transformer", *plain), pipeline)


def test_the_image_matters(family_of: FamilyOf, tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing about it."""
    family = family_of("1.5_i2v")
    scheduler = export(tmp_path / "o", "--checkpoint", family.transformer, "--base", family.model_yaml).scheduler
    videos = [
        frames_ours(load_ours(family.model_yaml, family.transformer, f"model.image_latent_scale={scale}"), scheduler)
        for scale in (1.0, 1e-6)
    ]
    assert not torch.allclose(*videos, atol=20 * TOLERANCE)
