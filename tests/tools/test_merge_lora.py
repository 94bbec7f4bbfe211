"""Merged weights compute what base and adapters compute together, whatever files the adapters come from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import convert_lora
import convert_weight_sat2hf
import pytest
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.config.targets import instantiate
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.run import run_sampling
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.key_rules import load_module
from cogvideox.weights.lora_map import is_adapter
from cogvideox.weights.sat_folder import fingerprint, read_checkpoint, write_checkpoint
from cogvideox.weights.torch_file import sha256_of
from merge_lora import main
from safetensors.torch import load_file
from tiny_checkpoints import ALPHA, RANK, Checkpoints
from torch import Tensor

FORWARD = 2e-5  # of the output's standard deviation, fp32: each product is summed in another order


def merge(output: Path, *arguments: Any) -> Path:
    main([*map(str, arguments), "--output_path", str(output)])
    return output


@pytest.fixture(scope="module")
def second(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run: rank 2, alpha 3."""
    generator = torch.Generator().manual_seed(9)
    adapters = {
        name: torch.randn(2 if "_A" in name else len(value), value.shape[1] if "_A" in name else 2, generator=generator)
        / 4
        for name, value in read_checkpoint(checkpoints.run).module.items()
    }
    base = checkpoints.family.transformer
    origin = {"path": str(base), "sha256": fingerprint(base)}
    folder = tmp_path_factory.mktemp("second")
    write_checkpoint(folder, 5, adapters, {"lora": {"r": 2, "alpha": 3.0}, "base": origin})
    return folder


@torch.no_grad()
def forward(
    checkpoints: Checkpoints, *states: dict[str, Tensor], lora: dict[str, Any] | None = None, strength=1.0
) -> Tensor:
    model = instantiate(tiny.network_node(lora), dtype=torch.float32)
    for state in states:
        load_module(model, state, TRANSFORMER_PREFIX, partial=state is not states[0])
    if lora is not None:
        model.mixins["lora"].set_strength(strength)
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 3, 16, 4, 6, generator=generator)
    context = torch.randn(2, tiny.TEXT_LENGTH, tiny.TEXT_WIDTH, generator=generator)
    return model(latent, torch.tensor([10, 700]), context)


def distance(mine: Tensor, reference: Tensor) -> float:
    return ((mine - reference).abs().max() / reference.std()).item()


@pytest.mark.parametrize("strength", [1.0, 0.5, -2.0])
def test_forward_of_one(checkpoints: Checkpoints, strength: float, tmp_path: Path, capsys: Any) -> None:
    """The base is found by what the run recorded."""
    out = merge(tmp_path / "m", "--adapter", f"{checkpoints.run}:{strength}")
    merged, base = read_checkpoint(out), read_checkpoint(checkpoints.family.transformer)
    assert merged.module.keys() == base.module.keys()
    adapters = read_checkpoint(checkpoints.run).module
    lora = {"r": RANK, "lora_alpha": ALPHA}
    expected = forward(checkpoints, base.module, adapters, lora=lora, strength=strength)
    assert distance(forward(checkpoints, merged.module), expected) <= FORWARD
    assert distance(forward(checkpoints, base.module), expected) > 0.1, "the adapters must have a visible effect"
    assert f"+ {strength:g} x " in capsys.readouterr().out


def test_forward_of_two_of_different_rank(checkpoints: Checkpoints, second: Path, tmp_path: Path) -> None:
    """A run and a ComfyUI file; the reference holds both in one adapter of rank 6."""
    convert_lora.main([str(second), "--to", "comfyui", "--output_path", str(tmp_path / "comfy")])
    out = merge(tmp_path / "m", "--adapter", f"{checkpoints.run}:0.5", "--adapter", tmp_path / "comfy")
    one, two = read_checkpoint(checkpoints.run).module, read_checkpoint(second).module
    both = {
        name: torch.cat([one[name], two[name]])
        if "_A" in name
        else torch.cat([0.5 * ALPHA / RANK * one[name], 3.0 / 2 * two[name]], dim=1)
        for name in one
    }
    base = read_checkpoint(checkpoints.family.transformer).module
    expected = forward(checkpoints, base, both, lora={"r": RANK + 2, "lora_alpha": float(RANK + 2)})
    assert distance(forward(checkpoints, read_checkpoint(out).module), expected) <= FORWARD


def test_adding_and_subtracting_is_the_base(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = merge(tmp_path / "m", "--adapter", f"{checkpoints.run}:1", "--adapter", f"{checkpoints.run}:-1")
    merged, base = read_checkpoint(out).module, read_checkpoint(checkpoints.family.transformer).module
    for name, value in base.items():
        torch.testing.assert_close(merged[name], value, rtol=0, atol=2e-7)


def test_type_is_that_of_the_base_or_as_asked(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """bf16: each value is the fp32 sum rounded once."""
    base = read_checkpoint(checkpoints.family.transformer).module
    write_checkpoint(tmp_path / "bf16", 1, {name: value.bfloat16() for name, value in base.items()}, {})
    arguments = ("--base", tmp_path / "bf16", "--adapter", checkpoints.run)
    rounded, exact = merge(tmp_path / "a", *arguments), merge(tmp_path / "b", *arguments, "--fp32")
    first, second = read_checkpoint(rounded).module, read_checkpoint(exact).module
    assert {value.dtype for value in first.values()} == {torch.bfloat16}
    assert {value.dtype for value in second.values()} == {torch.float32}
    assert all(torch.equal(value.bfloat16(), first[name]) for name, value in second.items())


def test_base_in_8_bits(checkpoints: Checkpoints, tmp_path: Path) -> None:
    module = read_checkpoint(checkpoints.family.transformer).module
    name = f"{TRANSFORMER_PREFIX}transformer.layers.0.attention.dense.weight"
    torch.save({"module": {**module, name: module[name].to(torch.float8_e4m3fn)}}, tmp_path / "base.pt")
    arguments = ("--base", tmp_path / "base.pt", "--adapter", checkpoints.run)
    with pytest.raises(
        CheckpointError, match=r"base\.pt stores .*dense\.weight as torch\.float8_e4m3fn, .*give --bf16"
    ):
        merge(tmp_path / "m", *arguments)
    assert {v.dtype for v in read_checkpoint(merge(tmp_path / "m", *arguments, "--bf16")).module.values()} == {
        torch.bfloat16
    }


def test_result_converts(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    out = merge(tmp_path / "m", "--adapter", checkpoints.run)
    arguments = ["--checkpoint", out, "--base", checkpoints.family.model_yaml, "--only", "transformer", "--verify"]
    convert_weight_sat2hf.main([*map(str, arguments), "--output_path", str(tmp_path / "hf")])
    assert "LoRA" not in capsys.readouterr().out


def test_result_samples(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The latents of a whole sampling run, with the adapters beside and merged."""
    out = merge(tmp_path / "m", "--adapter", checkpoints.run)
    runs = {
        "beside": (checkpoints.run / "training_config.yaml", checkpoints.run),
        "merged": (checkpoints.family.model_yaml, out),
    }
    latents = []
    for name, (yaml, load) in runs.items():
        given = {
            "load": load,
            "prompts": ["a red square moves left"],
            "output_dir": tmp_path / name,
            "sampling_image_size": [tiny.HEIGHT, tiny.WIDTH],
            "sampling_num_frames": 3,
            "device": "cpu",
            "num_steps": 2,
            "only_save_latents": True,
        }
        config = load_config([str(yaml)], [f"args.{key}={value}" for key, value in given.items()], "sample")
        run_sampling(config, ProcessGroups(0, 1, 0, torch.device("cpu")))
        (file,) = (tmp_path / name).rglob("*.safetensors")
        (latent,) = load_file(file).values()
        latents.append(latent)
    assert distance(*latents) <= 10 * FORWARD  # a few steps with guidance


def test_manifest(checkpoints: Checkpoints, second: Path, tmp_path: Path) -> None:
    out = merge(tmp_path / "m", "--adapter", checkpoints.run, "--adapter", f"{second}:0.25")
    manifest = json.loads((out / "conversion.json").read_text())
    assert [(each["strength"], each["r"], each["alpha"]) for each in manifest["merged"]] == [
        (1, RANK, ALPHA),
        (0.25, 2, 3),
    ]
    assert len(manifest["inputs"]) == 3
    outputs = {each["path"]: each["sha256"] for each in manifest["outputs"]}
    assert outputs.keys() == {"1/mp_rank_00_model_states.pt", "latest", "training_config.yaml", "README.md"}
    assert all(sha256_of(out / name) == value for name, value in outputs.items())


def test_alpha_is_for_those_that_do_not_state_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    adapters = {name: value for name, value in read_checkpoint(checkpoints.old_lora).module.items() if is_adapter(name)}
    write_checkpoint(tmp_path / "old", 1, adapters, {})
    arguments = ("--base", checkpoints.family.transformer, "--adapter", checkpoints.run, "--adapter", tmp_path / "old")
    merge(tmp_path / "m", *arguments, "--alpha", 2)
    manifest = json.loads((tmp_path / "m" / "conversion.json").read_text())
    assert [each["alpha"] for each in manifest["merged"]] == [ALPHA, 2.0]


@pytest.mark.parametrize("strength", ["strong", "nan", "inf", ""])
def test_strength_that_is_no_number(checkpoints: Checkpoints, strength: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"strength '{strength}' is not a number; write e\.g\. .*run:0\.8"):
        merge(tmp_path / "m", "--adapter", f"{checkpoints.run}:{strength}")


def test_a_colon_in_the_path(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """A path that is there wins, with and without a strength behind it; what has a separator is never a strength."""
    folder = tmp_path / "lora:2"
    shutil.copytree(checkpoints.run, folder)
    for text, strength in ((str(folder), "1"), (f"{folder}:0.5", "0.5")):
        merge(tmp_path / strength, "--adapter", text)
        assert f"+ {strength} x {folder}/20" in capsys.readouterr().out
    for text in (f"{folder}/lost.safetensors", "C:\\loras\\a.safetensors", "lost:a/b"):
        with pytest.raises(CheckpointError, match=f"no checkpoint at {re.escape(text)}: valid are"):
            merge(tmp_path / "m", "--adapter", text)
    for text in ("", ":0.5"):
        with pytest.raises(ConfigError, match=f"--adapter '{text}': there is no path; write e\\.g\\. lora:0\\.8"):
            merge(tmp_path / "m", "--adapter", text)


def test_sum_beyond_the_type(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"attention\.query_key_value\.weight holds .*, beyond float16's 65504"):
        merge(tmp_path / "m", "--adapter", f"{checkpoints.run}:1e6", "--fp16")
    assert not (tmp_path / "m").exists()


def test_mistakes(checkpoints: Checkpoints, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    write_checkpoint(alone, 1, dict(read_checkpoint(checkpoints.run).module), {"lora": {"r": RANK, "alpha": ALPHA}})
    out = tmp_path / "m"
    with pytest.raises(CheckpointError, match=r"which model\? no adapter records one .*: give --base"):
        merge(out, "--adapter", alone)
    other = tiny.write_family(tmp_path / "other", num_clips=0, family="5b_i2v").transformer
    with pytest.raises(CheckpointError, match=r"was trained on .*16 input channels.* is .*32 input channels"):
        merge(out, "--adapter", checkpoints.run, "--base", other)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        merge(out, "--adapter", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no LoRA adapters"):
        merge(out, "--adapter", checkpoints.family.transformer)
    with pytest.raises(ConfigError, match="--adapter"):
        merge(out, "--base", other)
    assert not out.exists()
    merge(out, "--adapter", checkpoints.run)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        merge(out, "--adapter", checkpoints.run)


def test_base_that_has_changed(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """The recorded file is another model by now: nothing is merged into it unless it is given."""
    module = dict(read_checkpoint(checkpoints.family.transformer).module)
    write_checkpoint(tmp_path / "base", 1, module, {})
    origin = {"path": str(tmp_path / "base"), "sha256": fingerprint(tmp_path / "base")}
    run = read_checkpoint(checkpoints.run)
    write_checkpoint(tmp_path / "run", 1, run.module, {"lora": run.extra["lora"], "base": origin})
    write_checkpoint(tmp_path / "base", 1, {name: 2 * value for name, value in module.items()}, {}, overwrite=True)
    with pytest.raises(CheckpointError, match="that file has changed since"):
        merge(tmp_path / "m", "--adapter", tmp_path / "run")
    capsys.readouterr()
    merge(tmp_path / "m", "--adapter", tmp_path / "run", "--base", tmp_path / "base")
    assert "note:" in (said := capsys.readouterr().out) and f"SHA-256 {origin['sha256'][:12]}" in said
    merge(tmp_path / "same", "--adapter", checkpoints.run, "--base", checkpoints.family.transformer)
    assert "note:" not in capsys.readouterr().out


def test_base_that_is_recorded_relative_to_the_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """As for sampling and convert_weight_sat2hf; a LoRA of another model is recognised by it as well."""
    shutil.copytree(checkpoints.family.transformer, tmp_path / "base")
    run = read_checkpoint(checkpoints.run)
    origin = {"path": "../../base", "sha256": fingerprint(tmp_path / "base")}
    write_checkpoint(tmp_path / "run", 1, run.module, {"lora": run.extra["lora"], "base": origin})
    found = read_checkpoint(merge(tmp_path / "m", "--adapter", tmp_path / "run")).module
    expected = read_checkpoint(merge(tmp_path / "expected", "--adapter", checkpoints.run)).module
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    other = tiny.write_family(tmp_path / "other", num_clips=0, family="5b").transformer
    with pytest.raises(CheckpointError, match=r"was trained on .*sin/cos positions.* is .*rotary"):
        merge(tmp_path / "n", "--adapter", tmp_path / "run", "--base", other)


def test_second_adapter_of_another_file(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """The base is that of the first whose base is there; what the others were trained on is compared."""
    run = read_checkpoint(checkpoints.run)
    for name, path in (("gone", "/nowhere/base"), ("pathless", "")):
        origin = {"path": path, "sha256": "0" * 64}
        write_checkpoint(tmp_path / name, 1, run.module, {"lora": run.extra["lora"], "base": origin})
    with pytest.raises(CheckpointError, match=r"which model\? .* give --base \(.*its base /nowhere/base.* it is"):
        merge(tmp_path / "m", "--adapter", tmp_path / "gone")
    arguments = [item for name in ("gone", "pathless") for item in ("--adapter", tmp_path / name)]
    merge(tmp_path / "m", *arguments, "--adapter", checkpoints.run)
    assert capsys.readouterr().out.count("note: ") == 2


def test_model_in_the_same_file(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """A run that trained base weights beside its LoRA saves both, and both are in the result."""
    old, suffix = read_checkpoint(checkpoints.old_lora).module, "layers.1.mlp.dense_h_to_4h.weight"
    trained = {name: value + 1 if name.endswith(suffix) else value for name, value in old.items()}
    write_checkpoint(tmp_path / "run", 1, trained, {"lora": {"r": RANK, "alpha": ALPHA}})
    found = read_checkpoint(merge(tmp_path / "m", "--adapter", tmp_path / "run")).module
    expected = read_checkpoint(merge(tmp_path / "pure", "--adapter", checkpoints.run)).module
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value + 1 if name.endswith(suffix) else value), name
    assert "note" not in capsys.readouterr().out
    merge(tmp_path / "other", "--adapter", tmp_path / "run", "--base", checkpoints.family.transformer)
    assert "note: that file's own model is left out" in capsys.readouterr().out
    convert_lora.main([str(tmp_path / "run"), "--to", "diffusers", "--output_path", str(tmp_path / "hf")])
    assert "note: the model in the same file is left out" in capsys.readouterr().out


def test_a_part_of_the_model_in_the_same_file(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """Trained weights beside the adapters, on a base that is elsewhere: they count too, or are said to be left out."""
    run = read_checkpoint(checkpoints.run)
    name = f"{TRANSFORMER_PREFIX}transformer.layers.1.mlp.dense_h_to_4h.weight"
    trained = read_checkpoint(checkpoints.family.transformer).module[name] + 1
    write_checkpoint(tmp_path / "run", 1, {**run.module, name: trained}, run.extra)
    found = read_checkpoint(merge(tmp_path / "m", "--adapter", tmp_path / "run")).module
    expected = read_checkpoint(merge(tmp_path / "pure", "--adapter", checkpoints.run)).module
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], trained if key == name else value) for key, value in expected.items())
    assert "note" not in capsys.readouterr().out
    convert_lora.main([str(tmp_path / "run"), "--to", "diffusers", "--output_path", str(tmp_path / "hf")])
    assert "note: the model in the same file is left out" in capsys.readouterr().out


def test_a_broken_base_leaves_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    module = dict(read_checkpoint(checkpoints.family.transformer).module)
    name = next(iter(module))
    write_checkpoint(tmp_path / "base", 1, module, {})
    file = tmp_path / "base" / "1" / "mp_rank_00_model_states.pt"
    torch.save({"module": {**module, name: torch.full_like(module[name], float("nan"))}}, file)
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {name}"):
        merge(tmp_path / "m", "--base", tmp_path / "base", "--adapter", checkpoints.run)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["base"]


def test_a_merged_folder_is_exported_by_itself(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Its YAML is the run's without adapters; the exporter finds VAE and text encoder by it."""
    out = merge(tmp_path / "m", "--adapter", checkpoints.run)
    config = load_config([str(out / "training_config.yaml")], [], "train", partial=True)
    assert config.train_args.load == str(out.resolve())
    assert "lora_config" not in config.model.network_config["params"]["modules"]
    convert_weight_sat2hf.main(["--checkpoint", str(out), "--output_path", str(tmp_path / "hf")])
    written = json.loads((tmp_path / "hf" / "transformer" / "config.json").read_text())
    run = ["--checkpoint", str(checkpoints.run), "--merge_lora", "--output_path", str(tmp_path / "direct")]
    convert_weight_sat2hf.main(run)
    assert written == json.loads((tmp_path / "direct" / "transformer" / "config.json").read_text())


def test_without_a_run_nothing_is_invented(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    alone = tmp_path / "alone"
    convert_lora.main([str(checkpoints.run), "--to", "diffusers", "--output_path", str(alone)])
    plain = Path(shutil.copytree(checkpoints.family.transformer, tmp_path / "base"))
    out = merge(tmp_path / "m", "--adapter", alone, "--base", plain)
    assert not (out / "training_config.yaml").exists()
    assert "exporting it needs --base with its YAML" in capsys.readouterr().out
