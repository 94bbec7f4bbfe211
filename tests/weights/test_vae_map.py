from __future__ import annotations

import json
from pathlib import Path

import pytest
from cogvideox.errors import CheckpointError
from cogvideox.weights import vae_map
from vae.tiny_vae import tiny_vae

STORED_NAMES = json.loads((Path(__file__).parents[1] / "vae" / "stored_names.json").read_text())


def test_there_and_back_for_every_stored_name() -> None:
    translated = {name: vae_map.sat_to_diffusers(name) for name in STORED_NAMES}
    assert len(set(translated.values())) == len(STORED_NAMES) == 436
    assert all(vae_map.diffusers_to_sat(target) == name for name, target in translated.items())


def test_names_and_shapes_are_those_of_diffusers() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLCogVideoX().state_dict()
    ours = {vae_map.sat_to_diffusers(name): shape for name, shape in STORED_NAMES.items()}
    assert ours == {name: list(value.shape) for name, value in theirs.items()}


@pytest.mark.parametrize(
    ("sat", "diffusers"),
    [
        ("decoder.up.0.block.0.nin_shortcut.bias", "decoder.up_blocks.3.resnets.0.conv_shortcut.bias"),
        ("decoder.up.3.upsample.conv.weight", "decoder.up_blocks.0.upsamplers.0.conv.weight"),
        ("encoder.down.1.downsample.conv.bias", "encoder.down_blocks.1.downsamplers.0.conv.bias"),
        ("encoder.mid.block_2.conv1.conv.weight", "encoder.mid_block.resnets.1.conv1.conv.weight"),
        ("decoder.norm_out.norm_layer.weight", "decoder.norm_out.norm_layer.weight"),
    ],
)
def test_known_pairs(sat: str, diffusers: str) -> None:
    assert vae_map.sat_to_diffusers(sat) == diffusers
    assert vae_map.diffusers_to_sat(diffusers) == sat


def test_mirroring_follows_the_number_of_levels() -> None:
    assert vae_map.sat_to_diffusers("decoder.up.0.block.1.norm1.norm_layer.bias", num_levels=3).startswith(
        "decoder.up_blocks.2.resnets.1."
    )


@pytest.mark.parametrize(
    "name",
    [
        "loss.logvar",
        "encoder.down.0.block.0.attn.weight",
        "encoder.down.0.block.0.conv_shortcut.weight",  # the other family's word
        "encoder.mid.block_0.norm1.weight",
        "decoder.up.4.block.0.norm1.norm_layer.weight",
        "encoder.down_blocks.0.resnets.0.norm1.weight",
        "decoder.conv_in.conv.weight.extra",
    ],
)
def test_unknown_sat_name_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}' is no tensor of a CogVideoX VAE .* in SAT's naming"):
        vae_map.sat_to_diffusers(name)


def test_unknown_diffusers_name_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'quant_conv.weight' is no tensor .* in diffusers's naming"):
        vae_map.diffusers_to_sat("quant_conv.weight")


def without(*names: str) -> dict[str, list[int]]:
    return {name: shape for name, shape in STORED_NAMES.items() if name not in names}


def test_every_hole_is_found() -> None:
    for name in STORED_NAMES:
        assert vae_map.missing_vae_names(without(name)) == [name]


def test_whole_ones_of_any_size() -> None:
    assert vae_map.missing_vae_names(STORED_NAMES) == []
    source = tiny_vae().state_dict()
    shapes = {name: value.shape for name, value in source.items()}
    vae_map.check_whole(shapes, "tiny")
    vae_map.check_whole({vae_map.sat_to_diffusers(name): shape for name, shape in shapes.items()}, "tiny")


def test_holes_are_named_as_the_file_names_its_tensors() -> None:
    level = [name for name in STORED_NAMES if name.startswith("decoder.up.3.")]
    expected = (
        rf"3d-vae\.pt is not a whole VAE: it lacks {len(level)} of its .*: decoder\.up\.3\.block\.0\.norm1.* and "
    )
    with pytest.raises(CheckpointError, match=expected + str(len(level) - 4)):
        vae_map.check_whole(without(*level), "3d-vae.pt")
    block = "decoder.up.0.block.0.nin_shortcut."
    shapes = {
        vae_map.sat_to_diffusers(name): shape for name, shape in without(f"{block}weight", f"{block}bias").items()
    }
    theirs = r"decoder\.up_blocks\.3\.resnets\.0\.conv_shortcut\."
    with pytest.raises(CheckpointError, match=rf"it lacks 2 of its tensors: {theirs}weight, {theirs}bias$"):
        vae_map.check_whole(shapes, "vae")
    encoder = {name: shape for name, shape in STORED_NAMES.items() if name.startswith("encoder.")}
    assert len(vae_map.missing_vae_names(encoder)) > 100
