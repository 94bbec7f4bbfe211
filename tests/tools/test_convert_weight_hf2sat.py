"""hf2sat: the way back is bit-equal, what is written trains, interruptions are continued, mistakes are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cogvideox
import pytest
import torch
from cogvideox.config.load import load_config
from cogvideox.conversion.diffusers_import import convert as convert_module
from cogvideox.errors import CheckpointError, ConfigError, run_cli
from cogvideox.released import FAMILIES as PUBLISHED
from cogvideox.weights.hashes import FAST, SHA256, hash_of
from cogvideox.weights.safetensors_stream import Entry, write_model
from cogvideox.weights.sat_folder import STATES_FILE, read_checkpoint, read_vae
from convert_weight_hf2sat import main
from convert_weight_sat2hf import main as sat2hf
from diffusers import CogVideoXTransformer3DModel
from huggingface_hub.errors import DryRunError
from safetensors.torch import load_file, save_file
from tiny import FamilyOf
from tiny_checkpoints import FAMILIES, PREFIX

Exported = Callable[[str], Path]
STEM = "diffusion_pytorch_model"


def back(source: Path | str, output: Path, *flags: str) -> Path:
    main([str(source), "--output_path", str(output), *flags])
    return output


def states(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder).module


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in FAMILIES),
        *(("2b", torch.float16), ("5b", torch.bfloat16)),  # those they are released in
    ],
)
def test_there_and_back_is_bit_equal(name: str, dtype: torch.dtype, family_of: FamilyOf, tmp_path: Path) -> None:
    family, before = family_of(name), states(family_of(name).transformer)
    typed = tmp_path / "typed.pt"
    torch.save({"module": {key: value.to(dtype) for key, value in before.items()}}, typed)
    words = ["--checkpoint", str(typed), "--base", str(family.model_yaml), "--only", "transformer"]
    sat2hf([*words, "--output_path", str(tmp_path / "hf"), "--max_shard_size", "200KB"])
    after = states(back(tmp_path / "hf", tmp_path / "sat") / "transformer")
    added = {PREFIX + f"mixins.pos_embed.freqs_{kind}" for kind in ("sin", "cos")} if name.startswith("5b") else set()
    assert after.keys() == before.keys() | added
    unused = PREFIX + "transformer.position_embeddings.weight"
    for key, value in before.items():
        assert after[key].dtype == dtype
        assert key == unused or torch.equal(after[key], value.to(dtype)), key
    if unused in after:
        assert not after[unused].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_pipeline(name: str, exported: Exported, family_of: FamilyOf, tmp_path: Path, capsys: Any) -> None:
    """VAE and T5 come along, --verify agrees, and the YAML describes the family as its own did."""
    out = back(exported(name), tmp_path / "sat", "--verify")
    text = capsys.readouterr().out
    assert "tensors equal bit by bit" in text and "transformer: output differs by at most" in text
    assert "VAE: decoded video differs" in text
    vae, ours = read_vae(out / "vae"), read_vae(family_of(name).vae)
    assert vae.keys() == ours.keys() and all(torch.equal(vae[key], value) for key, value in ours.items())
    copied = {file.name for file in (out / "t5-v1_1-xxl").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= copied
    assert f"bash finetune_single_gpu.sh {out}/model_lora.yaml configs/sft" in text
    own = load_config([str(family_of(name).model_yaml)], [], "sample", partial=True).model
    for yaml in ("model.yaml", "model_lora.yaml"):
        made = load_config([str(out / yaml)], [], "sample", partial=True, check_files=False).model
        for key in ("scale_factor", "image_latent_scale", "noised_image_input"):
            assert getattr(made, key) == getattr(own, key) or key == "image_latent_scale"
        ours_network, made_network = own.network_config["params"], made.network_config["params"]
        grows = {"latent_height", "latent_width"} if name.startswith("1.5") else set()  # 1.5: only how far it reaches
        for key in ours_network.keys() - {"modules", "patch_size"} - grows:
            assert made_network[key] == ours_network[key], key
        assert ("lora_config" in made_network["modules"]) == (yaml == "model_lora.yaml")
        for part in ("ch", "ch_mult", "num_res_blocks", "norm_num_groups"):
            assert made.first_stage_config["params"][part] == own.first_stage_config["params"][part]


def test_what_is_written_samples(exported: Exported, tmp_path: Path) -> None:
    """The YAML builds the model, its paths load, and the result is the network that was exported."""
    from cogvideox.sampling.run import load_for_sampling

    out = back(exported("1.5_i2v"), tmp_path / "sat")
    overrides = ["args.sampling_image_size=[32,48]", "args.sampling_num_frames=4", "args.bf16=false", "args.fp16=false"]
    config = load_config([str(out / "model.yaml")], overrides, "sample", check_files=True)
    model = load_for_sampling(config.model, config.sample_args, torch.device("cpu"))
    assert config.model.image_latent_scale == 1.0
    stored = states(out / "transformer")
    for key, value in model.transformer.state_dict().items():
        assert torch.equal(value.float(), stored[PREFIX + key].float()), key


def test_published_models_need_their_paths_only(family_of: FamilyOf, tmp_path: Path) -> None:
    """For a released model the YAML holds nothing but the include and three paths."""
    from cogvideox import commands
    from cogvideox.conversion.diffusers_import import model_yaml

    wanted = {"args.load": "/x", "model.scale_factor": 0.7, "model.network_config.params.num_layers": 42}
    for family in PUBLISHED[1:]:
        assert model_yaml._differing(wanted, commands.ROOT / family.yaml) == {"args": {"load": "/x"}}


@pytest.mark.parametrize("flag", ["--fp16", "--bf16"])
def test_chosen_type(flag: str, exported: Exported, tmp_path: Path) -> None:
    out = back(exported("5b"), tmp_path / "sat", flag, "--verify")
    dtype = torch.float16 if flag == "--fp16" else torch.bfloat16
    assert {value.dtype for value in states(out / "transformer").values()} == {dtype}
    assert {value.dtype for value in read_vae(out / "vae").values()} == {dtype}


def test_manifest_holds_true_hashes(exported: Exported, tmp_path: Path) -> None:
    out = back(exported("2b"), tmp_path / "sat", "--sha256")
    manifest = json.loads((out / "conversion.json").read_text())
    assert manifest["source"] == str(exported("2b"))
    for kind in ("inputs", "outputs"):
        assert {each["part"] for each in manifest[kind]} == {"transformer", "vae", "text_encoder", "yaml"}
    for each in [*manifest["inputs"], *manifest["outputs"]]:
        file = out / each["path"]  # an absolute path stays itself
        assert file.stat().st_size == each["bytes"]
        assert each[FAST] == hash_of(file, FAST)
        assert each[SHA256] == hash_of(file, SHA256)
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} - {"conversion.json"}
    assert sorted(each["path"] for each in manifest["outputs"]) == sorted(written)
    kept = ("index.json", "README.md")
    read = {file for file in exported("2b").rglob("*") if file.is_file() and not file.name.endswith(kept)}
    assert {exported("2b") / "model_index.json", *read} == {Path(each["path"]) for each in manifest["inputs"]}


def test_the_licence_goes_along(exported: Exported, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(exported("2b"), source)
    (source / "LICENSE").write_text("the licence")
    out = back(source, tmp_path / "sat", "--only", "transformer")
    assert (out / "LICENSE").read_text() == "the licence"
    assert "LICENSE" in [each["path"] for each in json.loads((out / "conversion.json").read_text())["outputs"]]


def test_interrupted_conversion_goes_on(exported: Exported, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A crash in the VAE keeps the transformer, and leaves no half file; then only the rest is done."""
    out = tmp_path / "sat"

    def crash(path: Path, *_: Any) -> Any:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "stream_torch_file", crash)
        with pytest.raises(KeyboardInterrupt):
            back(exported("2b"), out)
    assert sorted(file.name for file in out.iterdir()) == ["conversion.json", "transformer"]
    transformer = out / "transformer" / "1" / STATES_FILE
    written = transformer.stat().st_mtime_ns
    capsys.readouterr()
    back(exported("2b"), out)
    assert "transformer: done before" in capsys.readouterr().out
    assert transformer.stat().st_mtime_ns == written
    assert (out / "vae" / "3d-vae.pt").is_file() and (out / "t5-v1_1-xxl" / "config.json").is_file()
    transformer.write_bytes(transformer.read_bytes()[:-1] + b"x")  # damaged since
    (out / "t5-v1_1-xxl" / "tokenizer.json").unlink()
    (out / "transformer" / "latest").unlink()
    back(exported("2b"), out)
    assert (out / "transformer" / "latest").is_file()
    text = capsys.readouterr().out
    assert "transformer: done before" not in text and "vae: done before" in text
    assert "text_encoder: done before" not in text
    assert states(out / "transformer").keys() == states(out / "transformer").keys()


def test_changed_input_is_converted_again(exported: Exported, tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "source"
    shutil.copytree(exported("2b") / "vae", source)
    back(source, tmp_path / "sat")
    state = load_file(source / f"{STEM}.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, source / f"{STEM}.safetensors")
    back(source, tmp_path / "sat")
    assert "done before" not in capsys.readouterr().out
    key = "decoder.conv_in.conv.bias"
    assert torch.equal(read_vae(tmp_path / "sat" / "vae")[key], state[key] + 1)


def test_changed_config_is_converted_again(exported: Exported, tmp_path: Path) -> None:
    """2B's position table follows from the size in config.json, which no weight file says."""
    source = tmp_path / "source"
    shutil.copytree(exported("2b") / "transformer", source)
    back(source, tmp_path / "sat")
    name = PREFIX + "mixins.pos_embed.pos_embedding"
    tokens = states(tmp_path / "sat" / "transformer")[name].shape[1]
    config = json.loads((source / "config.json").read_text())
    width = config["sample_width"]
    (source / "config.json").write_text(json.dumps({**config, "sample_width": 2 * width}))
    back(source, tmp_path / "sat")
    text = config["max_text_seq_length"]
    assert states(tmp_path / "sat" / "transformer")[name].shape[1] == text + 2 * (tokens - text)


def test_part_by_part(exported: Exported, tmp_path: Path, capsys: Any) -> None:
    """The YAML is the same however the parts come, and names those to come; --sha256 on and off converts nothing
    twice."""
    out = back(exported("2b"), tmp_path / "sat", "--sha256")
    whole = (out / "model.yaml").read_text()
    back(exported("2b"), out, "--only", "transformer")
    assert "transformer: done before" in capsys.readouterr().out
    assert (out / "model.yaml").read_text() == whole
    parts = back(exported("2b"), tmp_path / "parts", "--only", "transformer")
    said = capsys.readouterr().out
    assert "note: model.yaml expects vae/3d-vae.pt, which isn't there yet" in said
    back(exported("2b"), parts, "--only", "vae", "text_encoder")
    assert (parts / "model.yaml").read_text() == whole.replace(str(out), str(parts))
    load_config([str(parts / "model.yaml")], [], "train", partial=True, check_files=True)


def test_edited_yaml_is_kept(exported: Exported, tmp_path: Path, capsys: Any) -> None:
    """Also a second time, under a name of its own."""
    out = back(exported("2b"), tmp_path / "sat", "--only", "transformer")
    written = (out / "model.yaml").read_text()
    for number in (1, 2):
        (out / "model.yaml").write_text(f"# mine {number}\n{written}")
        back(exported("2b"), out, "--only", "transformer")
        assert f"model.yaml was there with other content: kept as model.yaml.{number}" in capsys.readouterr().out
        assert (out / f"model.yaml.{number}").read_text().startswith(f"# mine {number}\n")
        assert (out / "model.yaml").read_text() == written
    assert not (out / "model_lora.yaml.1").exists()


def test_folder_of_something_else(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="full exists and is not empty: choose another place"):
        back(exported("2b"), tmp_path / "full")
    back(exported("2b"), tmp_path / "sat", "--only", "vae")
    with pytest.raises(CheckpointError, match=r"sat holds a conversion of .*\(as stored\): choose another place"):
        back(exported("5b"), tmp_path / "sat", "--only", "vae")
    with pytest.raises(CheckpointError, match=r"holds a conversion of .*\(as stored\)"):
        back(exported("2b"), tmp_path / "sat", "--only", "vae", "--bf16")
    back(exported("2b"), tmp_path / "sat", "--only", "transformer")  # another part of the same is welcome


def test_source_by_another_path(exported: Exported, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The same folder is the same source, and its YAML is not rewritten."""
    shutil.copytree(exported("2b") / "transformer", tmp_path / "src")
    monkeypatch.chdir(tmp_path)
    for name in ("src", "./src", str(tmp_path / "src"), "src/../src"):
        back(name, tmp_path / "sat")
        text = capsys.readouterr().out
        assert ("done before" in text) == (name != "src") and "kept as" not in text


def test_transformer_of_no_released_model(exported: Exported, tmp_path: Path, capsys: Any) -> None:
    """Image input, but no learned positions: converted, and the missing YAML is mentioned."""
    copy = damaged(exported("5b_i2v") / "transformer", tmp_path / "a")
    rewrite(copy, lambda state: state.pop("patch_embed.pos_embedding"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "use_learned_positional_embeddings": False}))
    out = back(copy, tmp_path / "sat")
    assert "note: no model.yaml: no released model is built like CogVideoX of another layout" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["conversion.json", "transformer"]


def test_no_space(exported: Exported, tmp_path: Path, monkeypatch: Any) -> None:
    source, usage = exported("2b"), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=65 * 2**20))
    with pytest.raises(CheckpointError, match=r"not enough space for .*sat: 6.* MiB needed, 6.* MiB free"):
        back(source, tmp_path / "sat")
    assert not list((tmp_path / "sat").glob("transformer*"))


def damaged(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_missing_shards(exported: Exported, tmp_path: Path) -> None:
    copy = damaged(exported("1.5"), tmp_path / "a")
    shards = sorted((copy / "transformer").glob("*.safetensors"))
    shards[1].unlink()
    missing = f"lists 1 of {len(shards)} files that are not there, e.g. {shards[1].name}"
    with pytest.raises(CheckpointError, match=missing):
        back(copy, tmp_path / "out")
    shutil.copy(shards[0], shards[1])
    with pytest.raises(CheckpointError, match=r"index.json lists \d+ tensors that are in no file, e.g. \w+"):
        back(copy, tmp_path / "out")
    (copy / "transformer" / f"{STEM}.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=rf"has shards \({shards[0].name}, ...\) but no index"):
        back(copy, tmp_path / "out")
    for shard in (copy / "transformer").glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(CheckpointError, match=r"transformer has no weights: expected diffusion_pytorch_model\."):
        back(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_and_damaged_files(exported: Exported, tmp_path: Path) -> None:
    copy = damaged(exported("2b"), tmp_path / "a")
    file = copy / "vae" / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"safetensors is truncated or damaged"):
        back(copy, tmp_path / "out")
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vae/config.json is no valid JSON"):
        back(copy, tmp_path / "out")
    (copy / "vae" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"vae/config.json holds a list, expected a mapping"):
        back(copy, tmp_path / "out")
    shutil.copy(exported("2b") / "vae" / "config.json", copy / "vae")
    index = copy / "transformer" / f"{STEM}.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"index.json has no weight_map"):
        back(copy, tmp_path / "out", "--only", "transformer")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a model folder, which becomes one file."""
    state = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    change(state)
    save_file(state, folder / f"{STEM}.safetensors")


def test_unknown_and_missing_tensors(exported: Exported, tmp_path: Path) -> None:
    copy = damaged(exported("2b"), tmp_path / "a")
    rewrite(copy / "transformer", lambda state: state.update({"transformer_blocks.0.attn2.to_q.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"'transformer_blocks.0.attn2.to_q.weight' is no tensor of a CogVideoX"):
        back(copy, tmp_path / "out")
    rewrite(copy / "transformer", lambda state: state.pop("transformer_blocks.0.attn2.to_q.weight"))
    rewrite(copy / "transformer", lambda state: state.pop("transformer_blocks.1.attn1.to_k.weight"))
    with pytest.raises(CheckpointError, match=r"holds transformer_blocks.1.attn1.to_q.weight but not .*to_k.weight"):
        back(copy, tmp_path / "out")
    rewrite(copy / "vae", lambda state: state.update({"encoder.extra": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"'encoder.extra' is no tensor of a CogVideoX VAE"):
        back(copy, tmp_path / "out", "--only", "vae")


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_file_with_a_hole(part: str, exported: Exported, tmp_path: Path) -> None:
    """One file without an index can lack anything, unnoticed by its own format."""
    holes = {
        "transformer": ("transformer_blocks.0.ff.net.2.bias", "transformer_blocks.1.norm1.linear.weight"),
        "vae": ("decoder.up_blocks.1.resnets.0.conv1.conv.weight",),
    }
    for hole in holes[part]:
        copy = damaged(exported("5b"), tmp_path / hole)
        twin = hole.replace("norm1.linear", "norm2.linear")  # pieces of one tensor
        rewrite(copy / part, lambda state, names={hole, twin}: [state.pop(name) for name in names])
        with pytest.raises(CheckpointError, match=rf"{part} is not a whole .*: {hole}"):
            back(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vae_folder_with_a_hole_to_diffusers(exported: Exported, family_of: FamilyOf, tmp_path: Path) -> None:
    """sat2hf takes a VAE that is in diffusers' form already."""
    copy = damaged(exported("5b") / "vae", tmp_path / "vae")
    words = ["--vae", str(copy), "--base", str(family_of("5b").model_yaml), "--output_path"]
    sat2hf([*words, str(tmp_path / "whole")])
    rewrite(copy, lambda state: state.pop("encoder.mid_block.resnets.1.conv2.conv.bias"))
    with pytest.raises(CheckpointError, match=r"vae is not a whole VAE: .*encoder.mid_block.resnets.1.conv2.conv.bias"):
        sat2hf([*words, str(tmp_path / "out")])


def test_fixed_table_in_the_file_is_computed_all_the_same(exported: Exported, tmp_path: Path) -> None:
    copy = damaged(exported("2b"), tmp_path / "a")
    rewrite(copy / "transformer", lambda state: state.update({"patch_embed.pos_embedding": torch.ones(1, 30, 64)}))
    after, before = (
        states(back(copy, tmp_path / "a2") / "transformer"),
        states(back(exported("2b"), tmp_path / "b") / "transformer"),
    )
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_pickled_weights(exported: Exported, tmp_path: Path) -> None:
    """As diffusers wrote them before safetensors; a file with anything but tensors is refused."""
    copy = damaged(exported("2b") / "vae", tmp_path / "a")
    state = load_file(copy / f"{STEM}.safetensors")
    (copy / f"{STEM}.safetensors").unlink()
    torch.save(state, copy / f"{STEM}.bin")
    after, before = (
        read_vae(back(copy, tmp_path / "sat") / "vae"),
        read_vae(back(exported("2b"), tmp_path / "b") / "vae"),
    )
    assert all(torch.equal(after[key], value) for key, value in before.items())
    torch.save({"state": state}, copy / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match=r"bin holds something else than named tensors"):
        back(copy, tmp_path / "out")


def test_mixed_types(exported: Exported, tmp_path: Path) -> None:
    copy = damaged(exported("2b"), tmp_path / "a")
    name = "proj_out.bias"
    rewrite(copy / "transformer", lambda state: state.update({name: state[name].half()}))
    with pytest.raises(
        CheckpointError, match=r"mixes types: \d+ of float32, 1 of float16 \(e.g. proj_out.bias\): choose"
    ):
        back(copy, tmp_path / "out")
    back(copy, tmp_path / "out", "--bf16")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("2b", {"num_layers": 3}, r"config.json says num_layers 3 \(weights: 2\); the weights are CogVideoX-2B layout"),
        ("5b_i2v", {"use_learned_positional_embeddings": False}, r"use_learned_\w+ False \(weights: True\)"),
        ("1.5_i2v", {"in_channels": 16}, r"in_channels 16 \(weights: 32\); the weights are CogVideoX1.5-5B-I2V"),
        ("1.5_i2v", {"ofs_embed_dim": None}, r"ofs_embed_dim None \(weights: 32\)"),
        ("2b", {"activation_fn": "gelu"}, r"activation_fn 'gelu' \(computed here: 'gelu-approximate'\)"),
        ("5b", {"sample_frames": "49"}, r"config.json: sample_frames is '49'; expected is a whole number"),
        ("2b", {"sample_frames": 50}, r"the check of its model.yaml would say: .*num_frames.*50"),
        ("1.5", {"patch_size_t": None}, r"in_channels 16 \(weights: 32\), out_channels 16"),
        (
            "5b",
            {"_class_name": "FluxTransformer2DModel"},
            "holds a 'FluxTransformer2DModel', a CogVideoXTransformer3DModel",
        ),
    ],
)
def test_config_of_another_model(
    name: str, change: dict[str, Any], message: str, exported: Exported, tmp_path: Path
) -> None:
    copy = damaged(exported(name), tmp_path / "a")
    file = copy / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        back(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pipeline_of_the_other_kind(exported: Exported, tmp_path: Path) -> None:
    for name, kind in (("5b", "CogVideoXImageToVideoPipeline"), ("5b_i2v", "CogVideoXPipeline")):
        copy = damaged(exported(name), tmp_path / name)
        index = copy / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": kind}))
        with pytest.raises(CheckpointError, match=rf"is a {kind}, but its transformer is CogVideoX-5B"):
            back(copy, tmp_path / "out")
    index.write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(CheckpointError, match=r"describes a 'WanPipeline'; CogVideoX pipelines are CogVideoXPipeline"):
        back(copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: source"),
        ("{hf} --fp16 --bf16", "not allowed with argument"),
        ("{hf}/model_index.json", "is a file; a diffusers folder with model_index.json or config.json is expected"),
        ("{hf}/scheduler", "is no diffusers folder: it has neither model_index.json nor the config.json"),
        ("{hf}/vae --only transformer", "--only transformer: {hf}/vae has vae"),
    ],
)
def test_mistakes_get_one_line(arguments: str, message: str, exported: Exported, tmp_path: Path, capsys: Any) -> None:
    words = arguments.format(hf=exported("2b")).split()
    assert run_cli(main, [*words, "--output_path", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message.format(hf=exported("2b")) in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_text_encoder_with_missing_shards(exported: Exported, tmp_path: Path) -> None:
    copy = damaged(exported("2b"), tmp_path / "a")
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model.safetensors"}}
    (copy / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lists 1 of 2 files that are not there, e.g. model-00001-of-00002"):
        back(copy, tmp_path / "out")
    (copy / "text_encoder" / "model.safetensors.index.json").unlink()
    (copy / "text_encoder" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"model.safetensors is a Git LFS pointer"):
        back(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class FakeHub:
    """Stands for huggingface_hub.snapshot_download, which tests must not run."""

    def __init__(self, folder: Path, reachable: bool = True, size: int = 0) -> None:
        self.folder, self.reachable, self.size = folder, reachable, size
        self.patterns: list[str] = []

    def __call__(self, name: str, **settings: Any) -> Any:
        if name != "me/model":
            raise OSError("connection refused\nmore")
        if settings.get("dry_run"):
            if not self.reachable:
                raise DryRunError("offline")
            return [type("File", (), {"file_size": self.size, "will_download": True})()]
        self.patterns = settings["allow_patterns"]
        return str(self.folder)


def test_from_the_hub(exported: Exported, tmp_path: Path, monkeypatch: Any) -> None:
    for reachable in (True, False):  # what has been downloaded before is found without the hub
        hub = FakeHub(exported("2b"), reachable)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
        back("me/model", tmp_path / f"out{reachable}", "--only", "vae")
        assert {"vae/*", "scheduler/*", "*.json", "LICENSE"} <= set(
            hub.patterns
        ) and "transformer/*" not in hub.patterns
        assert (tmp_path / f"out{reachable}" / "vae" / "3d-vae.pt").is_file()
    with pytest.raises(CheckpointError, match=r"no folder you/none here, .* can't be reached \(connection refused\)"):
        back("you/none", tmp_path / "none")
    monkeypatch.setattr("huggingface_hub.snapshot_download", FakeHub(exported("2b"), size=10**18))
    with pytest.raises(CheckpointError, match="not enough space for"):
        back("me/model", tmp_path / "none", "--cache_dir", str(tmp_path))
    assert not (tmp_path / "none").exists()


def test_lora_beside_the_pipeline_is_mentioned(exported: Exported, tmp_path: Path, capsys: Any) -> None:
    copy = damaged(exported("2b"), tmp_path / "a")
    (copy / "pytorch_lora_weights.safetensors").write_bytes(b"")
    back(copy, tmp_path / "out", "--only", "vae")
    assert "the LoRA beside the pipeline is left out: tools/convert_lora.py" in capsys.readouterr().out


def test_unknown_part(exported: Exported, tmp_path: Path) -> None:
    copy = damaged(exported("2b"), tmp_path / "a")
    for name in ("transformer", "vae", "text_encoder"):
        shutil.rmtree(copy / name)
    with pytest.raises(CheckpointError, match="has none of the folders transformer, vae, text_encoder"):
        back(copy, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--only vae: .* has no parts"):
        back(copy, tmp_path / "out", "--only", "vae")


@pytest.mark.slow
def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """140 MB of fp16 weights, the largest tensor 8 MB; freed memory goes back at once, so that what is held shows."""
    write_model_folder(tmp_path / "small-hf", 1)
    write_model_folder(tmp_path / "large-hf", 8)
    tests = Path(__file__).parents[1]
    rooms = (Path(cogvideox.__file__).parents[1], tests.parent / "tools")
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "PYTHONPATH": os.pathsep.join(map(str, rooms))}
    command = [sys.executable, str(tests / "tools" / "memory_of_conversion.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    there, back_again = (int(word) for word in done.stdout.split("peaks:")[1].split())
    assert max(there, back_again) < 40 * 1024, done.stdout


def write_model_folder(folder: Path, layers: int) -> None:
    """A transformer of 2B's layout, 640 wide, in diffusers' form, without building it."""
    sizes = {"num_attention_heads": 10, "num_layers": layers, "sample_height": 8, "sample_width": 8, "sample_frames": 9}
    with torch.device("meta"):
        names = CogVideoXTransformer3DModel(**sizes).state_dict()
    entries = [Entry(name, tuple(value.shape), torch.float16) for name, value in names.items()]
    folder.mkdir()
    values = ((entry.name, torch.full(entry.shape, 0.5, dtype=torch.float16)) for entry in entries)
    write_model(folder, STEM, entries, values, max_shard_bytes=50 * 10**6)
    config = {"_class_name": "CogVideoXTransformer3DModel", **sizes}
    (folder / "config.json").write_text(json.dumps(config))
