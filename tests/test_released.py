"""The table of published models against the shipped YAML files, the original's own, and the constructors' defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cogvideox.commands import ROOT
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config, Kind
from cogvideox.config.signatures import read_signature
from cogvideox.released import COGVIDEOX_2B, FAMILIES, V1_0, Family

PUBLISHED = Path(__file__).parent / "config" / "published"
NETWORK = "cogvideox.transformer.model.DiffusionTransformer"
ENCODER = "cogvideox.text.encoders.T5Encoder"
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.short_name)


def shipped(kind: Kind, *files: str) -> Config:
    return load_config([str(ROOT / file) for file in files], [], kind, partial=True)


@families
@pytest.mark.parametrize("lora", [False, True])
def test_the_model_files(family: Family, lora: bool) -> None:
    config = shipped("train", family.lora_yaml if lora else family.yaml)
    model, network = config.model, {**read_signature(NETWORK).defaults, **config.model.network_config["params"]}
    positions = network["modules"]["pos_embed_config"]
    generation = family.generation
    patch = network["patch_size"]
    assert (network["hidden_size"], network["num_layers"]) == (family.hidden_size, family.num_layers)
    assert (1 if isinstance(patch, int) else patch[0]) == generation.frames_per_patch
    assert network["num_frames"] == generation.clip.frames
    assert (network["latent_height"], network["latent_width"]) == (generation.latent_height, generation.latent_width)
    assert network["text_length"] == generation.text_length
    assert ("Rotary" in positions["target"]) == family.rotary
    assert bool((positions["params"] or {}).get("learnable_pos_embed")) == family.learned_table
    assert (network["ofs_embed_dim"] is not None) == family.has_ofs
    assert model.noised_image_input == family.image_input
    assert model.scale_factor == family.scale_factor
    image_scale = model.image_latent_scale or model.scale_factor if model.noised_image_input else None
    assert image_scale == family.image_latent_scale
    assert model.schedule_config["params"]["shift_scale"] == family.shift_scale
    assert ("lora_config" in network["modules"]) == lora


@families
def test_the_files_of_sampling_and_training(family: Family) -> None:
    generation, clip = family.generation, family.generation.clip
    args = shipped("sample", family.yaml, family.sampling_yaml).sample_args
    assert (args.sampling_num_frames, args.sampling_fps) == (generation.sampling_num_frames, clip.fps)
    if family.short_name != "1.5-I2V":  # whose size comes from the image
        assert args.sampling_image_size == (clip.height, clip.width)
    data = shipped("train", family.yaml, generation.training_yaml).data
    assert data is not None
    assert (data.max_num_frames, *data.video_size, data.fps) == (clip.frames, clip.height, clip.width, clip.fps)


@families
def test_the_original_s_own_files(family: Family) -> None:
    model = yaml.safe_load((PUBLISHED / Path(family.yaml).name).read_text())["model"]
    network = model["network_config"]["params"]
    assert model["scale_factor"] == family.scale_factor
    assert network["hidden_size"] == family.hidden_size and network["num_layers"] == family.num_layers
    generation = family.generation
    assert (network["latent_height"], network["latent_width"]) == (generation.latent_height, generation.latent_width)


def test_the_constructors_defaults_are_those_of_1_0() -> None:
    """What a file leaves out, the check of a configuration takes from the table, a network from its constructor."""
    network, encoder = read_signature(NETWORK).defaults, read_signature(ENCODER).defaults
    assert network["num_frames"] == V1_0.clip.frames
    assert (network["latent_height"], network["latent_width"]) == (V1_0.latent_height, V1_0.latent_width)
    assert network["text_length"] == encoder["max_length"] == V1_0.text_length


def test_1_0_counts_49_frames_as_13_latent_ones() -> None:
    assert [family.generation.sampling_num_frames for family in FAMILIES] == [13, 13, 13, 22, 22]
    assert COGVIDEOX_2B.hub_name == "THUDM/CogVideoX-2b"
