"""Back to the original program: its YAML, read again by our reader of published YAML, and one whole weight file."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import export_original
import pytest
import tiny
import torch
import yaml
from cogvideox.config.load import load_config
from cogvideox.config.schema import ModelConfig
from cogvideox.config.targets import instantiate
from cogvideox.conversion.original_export.model_yaml import published_model
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.lora_map import is_adapter, plain_name
from cogvideox.weights.sat_folder import read_checkpoint
from config.conftest import PUBLISHED, ROOT
from config.test_families import effective
from tiny_checkpoints import ALPHA, PREFIX, RANK, Checkpoints

FAMILIES = ("cogvideox_2b", "cogvideox_5b", "cogvideox_5b_i2v", "cogvideox1.5_5b", "cogvideox1.5_5b_i2v")
# How the VAE is run, which is no part of what the original's file says.
RUNNING = ("encode_chunk_frames", "decode_chunk_latent_frames", "tile_size", "tile_overlap", "offload_chunks")
WITHOUT_EFFECT = {"log_keys", "latent_input"}


def model_of(file: Path, *overrides: str) -> ModelConfig:
    return load_config([str(file)], list(overrides), "train", partial=True).model


def comparable(model: ModelConfig) -> dict[str, Any]:
    found = {key: effective(value) for key, value in dataclasses.asdict(model).items() if key not in WITHOUT_EFFECT}
    for key in RUNNING:
        found["first_stage_config"]["params"].pop(key, None)
    return found


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {name: value for key, below in tree.items() for name, value in leaves(below, f"{path}.{key}").items()}
    if isinstance(tree, list) and any(isinstance(each, dict) for each in tree):
        return leaves(dict(enumerate(tree)), path)
    return {path: tree}


@pytest.mark.parametrize("name", [*FAMILIES, *(f"{name}_lora" for name in FAMILIES)])
def test_our_yaml_there_and_back(name: str, tmp_path: Path) -> None:
    """Written in the original's names, and translated by the reader that takes its published files."""
    model = model_of(ROOT / "configs" / f"{name}.yaml")
    tree = published_model(model, "t5-v1_1-xxl", "3d-vae.pt")
    file = tiny.write_yaml(tmp_path / "model.yaml", {"model": tree})
    assert comparable(model_of(file)) == comparable(model)
    assert "cogvideox." not in file.read_text()


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("cogvideox*.yaml")), ids=lambda file: file.stem)
def test_published_files_come_out_as_they_went_in(file: Path) -> None:
    """Every value of a published file, but for the paths and what has no effect on any program."""
    expected = leaves(yaml.safe_load(file.read_text())["model"])
    found = leaves(published_model(model_of(file), "T5", "VAE"))
    no_effect = (
        "augmentation_dropout",
        "group_num",
        "fixed_frames",
        ".latent_input",
        ".rot_v",
        "model_dir",
        "ckpt_path",
    )
    for path, value in expected.items():
        factor = path.endswith("_interpolation") and "Rotary" in file.read_text()
        if not path.endswith(no_effect) and not factor and not (path.endswith(".params") and not value):
            assert found[path] == (2 if value == [1, 2, 2] else value), path


@pytest.mark.parametrize(
    ("family", "override", "match"),
    [
        (
            "cogvideox_2b",
            "network_config.params.modules.pos_embed_config.params.resize=interpolate",
            "resize is interp",
        ),
        (
            "cogvideox_2b",
            "sampler_config.params.spacing=linear_quadratic",
            r"spacing is linear_quadratic, and the orig",
        ),
        ("cogvideox_2b", "sampler_config.params.guidance.params.by=step", r"guidance\.params\.by is step"),
        ("cogvideox_2b", "sampler_config.params.guidance=null", r"it has no guidance, and the original needs one"),
        ("cogvideox_2b", "schedule_config.params.zero_terminal_snr=false", r"zero_terminal_snr is False"),
        ("cogvideox_2b", "first_stage_config.params.norm_num_groups=16", r"norm_num_groups is 16"),
        (
            "cogvideox1.5_5b_i2v",
            "image_latent_scale=0.7",
            r"image_latent_scale is 0\.7; the original samples 1\.5 with 1,",
        ),
        ("cogvideox_5b_i2v", "image_latent_scale=1.0", r"image_latent_scale is 1; the original samples 1\.0 with 0\.7"),
        ("cogvideox1.5_5b_i2v", "network_config.params.ofs=1.0", r"ofs is 1\.0, and the original computes with 2\.0"),
        (
            "cogvideox_5b",
            "network_config.params.modules.pos_embed_config.params.time_interpolation=2.0",
            r"time_interpolation is 2: the original's rotary positions don't apply it",
        ),
    ],
)
def test_what_the_original_would_compute_otherwise(family: str, override: str, match: str) -> None:
    model = model_of(ROOT / "configs" / f"{family}.yaml", f"model.{override}")
    with pytest.raises(ConfigError, match=match):
        published_model(model, "T5", "VAE")


@pytest.fixture
def run(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """The LoRA run, with a VAE of as many groups as the original's (its weights are not opened here)."""
    folder = tmp_path / "run"
    shutil.copytree(checkpoints.run, folder)
    section = tiny.model_section(checkpoints.family, lora={"r": RANK, "lora_alpha": ALPHA})
    section["first_stage_config"]["params"] |= {"norm_num_groups": 32, "ch": 32}
    data = {"video_size": [tiny.HEIGHT, tiny.WIDTH], "max_num_frames": tiny.FRAMES, "fps": tiny.FPS}
    settings = {"bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    tiny.write_yaml(folder / "training_config.yaml", {"model": section, "data": data, "deepspeed": settings})
    return folder


def export(source: Path, output: Path, *words: str) -> Path:
    export_original.main([str(source), *words, "--output_path", str(output)])
    return output


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def test_a_lora_run(run: Path, checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    out = export(run, tmp_path / "out")
    text = capsys.readouterr().out
    assert "model.yaml states lora_alpha 6; without that line the original takes 1" in text
    assert "give --lora_rank 1" in text and "sample_video.py --base " in text
    lora = read(out / "model.yaml")["model"]["network_config"]["params"]["modules"]["lora_config"]
    assert lora == {"target": "sat.model.finetune.lora2.LoraMixin", "params": {"r": RANK, "lora_alpha": ALPHA}}
    args = read(out / "inference.yaml")["args"]
    assert args["load"] == str(out.resolve() / "transformer") and args["bf16"] is True
    assert (args["sampling_image_size"], args["sampling_num_frames"]) == ([tiny.HEIGHT, tiny.WIDTH], 3)
    files = [str(out / name) for name in ("model.yaml", "inference.yaml")]
    assert load_config(files, [], "sample").sample_args.sampling_num_frames == 3  # our reader takes the pair

    # The names and values that a whole model with these adapters has, SAT's `.original.` included.
    stored = read_checkpoint(out / "transformer").module
    model = instantiate(tiny.network_node({"r": RANK, "lora_alpha": ALPHA}), dtype=torch.float32)
    assert stored.keys() == {PREFIX + name for name in model.state_dict()}
    base, adapters = read_checkpoint(checkpoints.family.transformer).module, read_checkpoint(run).module
    for name, value in stored.items():
        assert torch.equal(value, adapters[name] if is_adapter(name) else base[plain_name(name)]), name


def test_sats_own_lora_reads_the_file(run: Path, tmp_path: Path) -> None:
    """SAT's LoraLinear with the exported alpha gives base + alpha / r * B A, from the exported names."""
    from sat.model.finetune.lora2 import LoraLinear

    out = export(run, tmp_path / "out")
    params = read(out / "model.yaml")["model"]["network_config"]["params"]["modules"]["lora_config"]["params"]
    layer = f"{PREFIX}transformer.layers.1.attention.dense."
    state = {
        name.removeprefix(layer): value
        for name, value in read_checkpoint(out / "transformer").module.items()
        if name.startswith(layer)
    }
    plain = torch.nn.Linear(64, 64)
    theirs = LoraLinear(torch.nn.Linear, 1, 64, 64, original_obj=plain, **params)
    theirs.load_state_dict(state, strict=False)
    a, b = state["matrix_A.0"], state["matrix_B.0"]
    assert torch.equal(theirs.original.weight, state["original.weight"]) and torch.equal(theirs.matrix_B[0], b)
    weight = state["original.weight"] + ALPHA / RANK * b @ a
    tokens = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    # Without a process group SAT can't copy to its ranks: the scale and the matrices are what is compared.
    added = theirs.scaling * tokens @ theirs.matrix_A[0].T @ theirs.matrix_B[0].T
    found = theirs.original(tokens) + added
    torch.testing.assert_close(found, tokens @ weight.T + state["original.bias"], rtol=1e-5, atol=1e-5)


def test_merged(run: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out", "--merge_lora")
    model = read(out / "model.yaml")["model"]
    assert "lora_config" not in model["network_config"]["params"]["modules"]
    name = f"{PREFIX}transformer.layers.0.attention.dense.weight"
    base, adapters = read_checkpoint(checkpoints.family.transformer).module, read_checkpoint(run).module
    a, b = (adapters[name.replace("weight", f"matrix_{kind}.0")] for kind in "AB")
    stored = read_checkpoint(out / "transformer").module
    assert stored.keys() == base.keys()
    torch.testing.assert_close(stored[name], base[name] + ALPHA / RANK * b @ a, rtol=0, atol=1e-6)


def test_a_converted_folder_is_not_copied(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "converted"
    shutil.copytree(checkpoints.family.transformer, folder / "transformer")
    section = tiny.model_section(checkpoints.family)
    section["first_stage_config"]["params"] |= {"norm_num_groups": 32, "ch": 32}
    tiny.write_yaml(folder / "model.yaml", {"args": {"fp16": True}, "model": section})
    out = export(folder, tmp_path / "out")
    assert "nothing was copied" in capsys.readouterr().out
    names = {file.name for file in out.iterdir()}
    assert names == {"README.md", "conversion.json", "inference.yaml", "model.yaml"}
    with pytest.raises(CheckpointError, match=r"holds no LoRA adapters: leave out --merge_lora"):
        export(folder, tmp_path / "merged", "--merge_lora")
    args = read(out / "inference.yaml")["args"]
    assert args["load"] == str((folder / "transformer").resolve()) and args["fp16"] is True


def test_without_a_yaml_or_with_a_vae_of_diffusers(run: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no YAML beside .*: give the one it belongs to with --base"):
        export(checkpoints.family.transformer, tmp_path / "out")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    override = f"model.first_stage_config.params.ckpt_path={tmp_path / 'vae'}"
    with pytest.raises(CheckpointError, match=r"is in diffusers' layout, which the original can't read: convert it"):
        export(run, tmp_path / "out", "--base", str(run / "training_config.yaml"), override)
