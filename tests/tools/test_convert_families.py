"""sat2hf for every family: the right pipeline, proven by --verify; mixtures of families, named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.sat_folder import read_checkpoint, write_checkpoint
from convert_weight_sat2hf import main
from tiny import FamilyOf
from tiny_checkpoints import FAMILIES, PREFIX

NEAREST = {
    "2b": "CogVideoX-2B",
    "5b": "CogVideoX-5B",
    "5b_i2v": "CogVideoX-5B-I2V",
    "1.5": "CogVideoX1.5-5B",
    "1.5_i2v": "CogVideoX1.5-5B-I2V",
}
YAML = {
    "2b": "configs/cogvideox_2b.yaml",
    "5b": "configs/cogvideox_5b.yaml",
    "5b_i2v": "configs/cogvideox_5b_i2v.yaml",
    "1.5": "configs/cogvideox1.5_5b.yaml",
    "1.5_i2v": "configs/cogvideox1.5_5b_i2v.yaml",
}
POSITIONS = "model.network_config.params.modules.pos_embed_config.params."


def convert(family: tiny.TinyFamily, output: Path, *flags: Any) -> Path:
    yaml = [] if "--base" in flags else ["--base", str(family.model_yaml)]
    overrides = [flag for flag in flags if str(flag).startswith("model.")]
    rest = [flag for flag in flags if flag not in overrides]
    words = ["--checkpoint", family.transformer, *yaml, *overrides, *rest, "--output_path", output]
    main([str(word) for word in words])
    return output


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_pipeline(name: str, family_of: FamilyOf, tmp_path: Path, capsys: Any) -> None:
    """--verify compares every tensor, the positions, one forward pass and the VAE with diffusers."""
    out = convert(family_of(name), tmp_path / "out", "--verify")
    text = capsys.readouterr().out
    image = name.endswith("i2v")
    pipeline = "CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline"
    for figure in (
        f"{NEAREST[name]} layout of another size",
        "tensors equal bit by bit",
        f"pipeline: {pipeline} opens",
    ):
        assert figure in text
    assert text.count("positions: largest difference") == (1 if name == "2b" else 2)
    assert "transformer: output differs by at most" in text
    assert ("diffusers' pipeline multiplies the image latent by 1.42857" in text) == (name == "1.5_i2v")
    assert ("give the pipeline height and width" in text) == name.startswith("1.5")
    assert ("diffusers uses the learned positions at 9 frames of 32 x 48 only" in text) == (name == "5b_i2v")
    assert ("at other sizes than 32 x 48 diffusers interpolates" in text) == (name == "5b")
    opened = getattr(diffusers, pipeline).from_pretrained(out)
    assert type(opened).__name__ == read(out / "model_index.json")["_class_name"] == pipeline
    config = opened.transformer.config
    assert config.use_rotary_positional_embeddings == (name != "2b")
    assert config.use_learned_positional_embeddings == (name == "5b_i2v")
    assert config.patch_size_t == (2 if name.startswith("1.5") else None)
    assert config.ofs_embed_dim == (32 if name == "1.5_i2v" else None)
    assert config.in_channels == (32 if image else 16)
    assert opened.scheduler.config.snr_shift_scale == (3.0 if name == "2b" else 1.0)
    assert opened.vae.config.scaling_factor == (1.15258426 if name == "2b" else 0.7)
    assert opened.vae.config.invert_scale_latents == name.startswith("1.5")


@pytest.mark.parametrize("scale", [0.7, 1 / 0.7, 1.0, 0.5])
@pytest.mark.parametrize("name", ["5b_i2v", "1.5_i2v"])
def test_scale_of_the_image_latent(name: str, scale: float, family_of: FamilyOf, tmp_path: Path, capsys: Any) -> None:
    """diffusers knows scale_factor and its inverse; for any other the export says what it will do."""
    override = f"model.image_latent_scale={scale}"
    out = convert(family_of(name), tmp_path / "out", override)
    inverts = scale > 1 or (scale in (1.0, 0.5) and name == "1.5_i2v")
    assert read(out / "vae" / "config.json")["invert_scale_latents"] == inverts
    assert read(out / "conversion.json")["image_latent_scale"] == scale
    assert ("--fold_image_scale makes up for it" in capsys.readouterr().out) == (scale in (1.0, 0.5))


def test_folded_scale_of_the_image_latent(family_of: FamilyOf, tmp_path: Path, capsys: Any) -> None:
    """Only the columns that the image latent meets change, by ours / theirs. test_pipeline.py compares the videos."""
    plain = convert(family_of("1.5_i2v"), tmp_path / "plain", "--only", "transformer")
    folded = convert(family_of("1.5_i2v"), tmp_path / "folded", "--only", "transformer", "--fold_image_scale")
    assert "the patch projection makes up for it" in capsys.readouterr().out
    assert read(folded / "conversion.json")["image_latent_scale"] == pytest.approx(1 / 0.7)
    before, after = (
        diffusers.CogVideoXTransformer3DModel.from_pretrained(folder).state_dict() for folder in (plain, folded)
    )
    name = "patch_embed.proj.weight"
    old, new = before.pop(name).unflatten(1, (32, -1)), after.pop(name).unflatten(1, (32, -1))
    assert torch.equal(new[:, :16], old[:, :16])
    torch.testing.assert_close(new[:, 16:], old[:, 16:] * 0.7, rtol=1e-6, atol=0)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("weights", FAMILIES)
@pytest.mark.parametrize("yaml", FAMILIES)
def test_weights_and_yaml_of_two_families(weights: str, yaml: str, family_of: FamilyOf, tmp_path: Path) -> None:
    """T2V and I2V, 1.0 and 1.5, fixed and rotary positions."""
    if weights == yaml:
        return
    with pytest.raises(ConfigError, match=f"holds {NEAREST[weights]} layout .* but the YAML says .*{YAML[weights]}"):
        convert(family_of(weights), tmp_path / "out", "--base", family_of(yaml).model_yaml)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("5b", "--use_rotary_positional_embeddings --version 1.0 --scaling_factor 0.7 --snr_shift_scale 1.0"),
        ("5b_i2v", "--use_rotary_positional_embeddings --i2v --version 1.0 --num_layers 2 --num_attention_heads 2"),
        ("1.5_i2v", "--use_rotary_positional_embeddings --i2v --version 1.5"),
    ],
)
def test_old_flags_that_agree(name: str, flags: str, family_of: FamilyOf, tmp_path: Path) -> None:
    out = convert(family_of(name), tmp_path / "out", "--only", "transformer", *flags.split())
    assert any(out.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("1.5", "--version 1.0", r"--version 1.0 contradicts the checkpoint \(CogVideoX1.5-5B .*it is 1.5; leave"),
        ("5b", "--version 1.5", r"--version 1.5 contradicts the checkpoint \(CogVideoX-5B .*it is 1.0; leave"),
        ("5b", "--i2v", r"--i2v contradicts the checkpoint \(CogVideoX-5B .*does not apply"),
        ("1.5_i2v", "--scaling_factor 1.15258426", r"--scaling_factor 1.15258426 contradicts .*it is 0.7"),
        ("1.5_i2v", "--snr_shift_scale 3.0", r"--snr_shift_scale 3.0 contradicts .*it is 1"),
    ],
)
def test_old_flags_that_contradict(name: str, flags: str, message: str, family_of: FamilyOf, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(family_of(name), tmp_path / "out", *flags.split())


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("5b", f"{POSITIONS}theta=5000", "theta 5000 and interpolation factors 1 .*have theta 10000 and no factors"),
        ("1.5", f"{POSITIONS}time_interpolation=2.0", r"interpolation factors 2 \(time\)"),
        ("5b", "--fold_image_scale", "--fold_image_scale is for image-to-video models, and this is CogVideoX-5B"),
        ("5b", "--max_shard_size 5XB", "--max_shard_size '5XB' is no size: write e.g. 5GB"),
        ("5b", "--max_shard_size 0GB", "'0GB' is no size"),
        ("5b_i2v", "model.network_config.params.num_frames=13", "learned position table has 30 tokens; 13 frames .*36"),
    ],
)
def test_what_diffusers_can_not_express(
    name: str, flags: str, message: str, family_of: FamilyOf, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        convert(family_of(name), tmp_path / "out", *flags.split())
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_of_positions_and_ofs(family_of: FamilyOf, tmp_path: Path, capsys: Any) -> None:
    convert(family_of("5b"), tmp_path / "a", f"{POSITIONS}resize=interpolate", "--only", "transformer")
    assert "diffusers interpolates" not in capsys.readouterr().out
    convert(family_of("1.5_i2v"), tmp_path / "b", "model.network_config.params.ofs=3.0", "--only", "transformer")
    assert "always passes ofs 2, the model was trained with 3" in capsys.readouterr().out


def test_mixed_types(family_of: FamilyOf, tmp_path: Path) -> None:
    """Tables that stay behind don't count; weights do, unless a type is chosen."""
    family = family_of("5b")
    state = dict(read_checkpoint(family.transformer).module)
    state[PREFIX + "mixins.pos_embed.freqs_sin"] = torch.zeros(18, 32).half()
    write_checkpoint(tmp_path / "table", 1, state, {})
    words = ["--base", str(family.model_yaml), "--only", "transformer", "--output_path"]
    main(["--checkpoint", str(tmp_path / "table"), *words, str(tmp_path / "a")])
    state[PREFIX + "time_embed.0.bias"] = state[PREFIX + "time_embed.0.bias"].bfloat16()
    write_checkpoint(tmp_path / "mixed", 1, state, {})
    with pytest.raises(
        CheckpointError, match=r"mixes types: 51 of float32, 1 of bfloat16 \(e.g. time_embed.0.bias\): choose one"
    ):
        main(["--checkpoint", str(tmp_path / "mixed"), *words, str(tmp_path / "b")])
    main(["--checkpoint", str(tmp_path / "mixed"), *words, str(tmp_path / "b"), "--fp32"])


def test_shards(family_of: FamilyOf, tmp_path: Path) -> None:
    out = convert(family_of("1.5"), tmp_path / "out", "--only", "transformer", "--max_shard_size", "300KB", "--verify")
    shards = sorted(out.glob("diffusion_pytorch_model-*.safetensors"))
    assert len(shards) > 1 and all(file.stat().st_size < 310_000 for file in shards)
    index = read(out / "diffusion_pytorch_model.safetensors.index.json")
    assert set(index["weight_map"].values()) == {file.name for file in shards}
    listed = {each["path"] for each in read(out / "conversion.json")["outputs"]}
    assert listed == {file.name for file in out.iterdir()} - {"conversion.json"}


def test_lora_of_another_family_than_2b(family_of: FamilyOf, tmp_path: Path, capsys: Any) -> None:
    """The adapters at weight 1.0 inside diffusers, with rotary positions, a learned table and an image."""
    from cogvideox.config.targets import instantiate
    from cogvideox.weights.lora_map import is_adapter
    from cogvideox.weights.sat_folder import fingerprint

    family = family_of("5b_i2v")
    model = instantiate(tiny.network_node({"r": 4, "lora_alpha": 6.0}, "5b_i2v"), dtype=torch.float32)
    adapters = {PREFIX + name: value for name, value in model.state_dict().items() if is_adapter(name)}
    generator = torch.Generator().manual_seed(5)
    adapters = {name: torch.randn(value.shape, generator=generator) / 8 for name, value in adapters.items()}
    base = read_checkpoint(family.transformer).path
    extra = {"lora": {"r": 4, "alpha": 6.0}, "base": {"path": str(base), "sha256": fingerprint(base)}}
    write_checkpoint(tmp_path / "run", 5, adapters, extra)
    section = tiny.model_section(family, lora={"r": 4, "lora_alpha": 6.0}, family="5b_i2v")
    tiny.write_yaml(tmp_path / "run" / "training_config.yaml", {"model": section})
    main(["--checkpoint", str(tmp_path / "run"), "--output_path", str(tmp_path / "out"), "--verify"])
    assert "transformer: output with the LoRA at weight 1.0 differs by at most" in capsys.readouterr().out
