"""One adapter through every layout and back, on the command line; what it records and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import convert_lora
import export_sat_lora_weight
import merge_lora
import pytest
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.errors import CheckpointError, ConfigError, run_cli
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.run import run_sampling
from cogvideox.weights.lora_file import BASE_HEADER, read_adapter
from cogvideox.weights.sat_folder import fingerprint, read_checkpoint, write_checkpoint
from cogvideox.weights.torch_file import sha256_of
from convert_lora import main
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoints import ALPHA, RANK, Checkpoints

LAYOUTS = ("diffusers", "comfyui", "comfyui-wrapper")


def convert(source: Path, layout: str, output: Path, *arguments: Any) -> Path:
    main([str(source), "--to", layout, "--output_path", str(output), *map(str, arguments)])
    return output


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_bit_equal(layout: str, checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    there = convert(checkpoints.run, layout, tmp_path / "mine")
    name = "pytorch_lora_weights" if layout == "diffusers" else "mine"
    assert sorted(file.name for file in there.iterdir()) == sorted(
        ["README.md", "conversion.json", f"{name}.safetensors"]
    )
    back = convert(there, "sat", tmp_path / "sat", "--base", checkpoints.family.transformer)
    assert f"rank {RANK}, alpha {ALPHA:g} (stated in the file), 2 layers of width 64" in capsys.readouterr().out
    first, second = read_checkpoint(checkpoints.run), read_checkpoint(back)
    assert first.module.keys() == second.module.keys()
    assert all(torch.equal(value, second.module[key]) for key, value in first.module.items())
    assert second.extra["lora"] == {"r": RANK, "alpha": ALPHA}
    assert second.extra["base"]["sha256"] == fingerprint(checkpoints.family.transformer)
    assert second.extra["base"]["model"]["num_layers"] == 2


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_between_others(source: str, target: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    direct = convert(checkpoints.run, target, tmp_path / "direct" / "mine")
    around = convert(convert(checkpoints.run, source, tmp_path / "a"), target, tmp_path / "around" / "mine")
    (first,), (second,) = (folder.glob("*.safetensors") for folder in (direct, around))
    expected, found = load_file(first), load_file(second)
    assert expected.keys() == found.keys() and all(torch.equal(value, found[key]) for key, value in expected.items())


def test_old_tool_gives_the_same_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    file = read_checkpoint(checkpoints.run).path
    arguments = ["--sat_pt_path", str(file), "--lora_save_directory", str(tmp_path / "old")]
    export_sat_lora_weight.main(arguments)
    new = convert(checkpoints.run, "diffusers", tmp_path / "new")
    name = "pytorch_lora_weights.safetensors"
    assert sha256_of(tmp_path / "old" / name) == sha256_of(new / name)


def test_old_file_without_alpha(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """SAT's default of 1, said aloud; what its YAML says beside it; what the flag says."""
    old = checkpoints.old_lora
    assert read_adapter(convert(old, "diffusers", tmp_path / "a")).lora.alpha == 1.0
    assert "note: alpha 1 is SAT's default; the file doesn't say" in capsys.readouterr().out
    assert read_adapter(convert(old, "diffusers", tmp_path / "b", "--alpha", 3)).lora.alpha == 3.0
    run = tmp_path / "run"
    shutil.copytree(old.parent, run / "1")
    (run / "latest").write_text("1")
    section = tiny.model_section(checkpoints.family, lora={"r": RANK, "lora_alpha": 2.5})
    tiny.write_yaml(run / "training_config.yaml", {"model": section})
    assert read_adapter(convert(run, "comfyui", tmp_path / "c")).lora.alpha == 2.5
    assert "alpha 2.5 (from " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lora", "error", "message"),
    [
        ({"r": RANK, "lora_alpha": -3}, CheckpointError, r"states alpha -3\.0, which is no number above 0"),
        ({"r": 8, "lora_alpha": 3}, ConfigError, r"describes a LoRA of rank 8, .* holds one of 4: give --alpha"),
    ],
)
def test_yaml_of_another_lora(
    lora: dict[str, Any], error: type[Exception], message: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints.old_lora.parent, tmp_path / "run" / "1")
    section = tiny.model_section(checkpoints.family, lora=lora)
    tiny.write_yaml(tmp_path / "run" / "training_config.yaml", {"model": section})
    with pytest.raises(error, match=message):
        convert(tmp_path / "run" / "1", "comfyui", tmp_path / "a")
    assert read_adapter(convert(tmp_path / "run" / "1", "comfyui", tmp_path / "b", "--alpha", 2)).lora.alpha == 2


def test_finetrainers_file_without_alpha(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    state = load_file(convert(checkpoints.run, "diffusers", tmp_path / "a") / "pytorch_lora_weights.safetensors")
    save_file({name: value for name, value in state.items() if "to_v" not in name}, tmp_path / "theirs.safetensors")
    back = convert(tmp_path / "theirs.safetensors", "sat", tmp_path / "b", "--base", checkpoints.family.transformer)
    assert read_checkpoint(back).extra["lora"] == {"r": RANK, "alpha": float(RANK)}
    text = capsys.readouterr().out
    assert "note: alpha 4 is the rank, so that scale is 1: the file doesn't say" in text
    assert "note: 4 matrices that the file doesn't have are zeros" in text


def test_what_a_file_records_of_its_base(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = convert(checkpoints.run, "diffusers", tmp_path / "a", "--base", checkpoints.family.transformer, "--bf16")
    with safe_open(out / "pytorch_lora_weights.safetensors", "pt") as file:
        recorded = json.loads(file.metadata()[BASE_HEADER])
    assert recorded["sha256"] == fingerprint(checkpoints.family.transformer)
    assert recorded["model"]["hidden_size"] == 64 and "path" not in recorded
    manifest = json.loads((out / "conversion.json").read_text())
    card, entry = manifest["outputs"]
    assert card["path"] == "README.md"
    assert sha256_of(out / entry["path"]) == entry["sha256"]
    assert manifest["inputs"][0]["path"] == str(read_checkpoint(checkpoints.run).path)
    assert manifest["lora"] == {"r": RANK, "alpha": ALPHA}
    assert {value.dtype for value in read_adapter(out).matrices.values()} == {torch.bfloat16}


def test_base_in_another_file(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """Not an error: a converted copy of a model has another hash. Without a word it could be another fine-tune."""
    module = read_checkpoint(checkpoints.family.transformer).module
    write_checkpoint(tmp_path / "copy", 1, {name: value.half() for name, value in module.items()}, {})
    convert(checkpoints.run, "sat", tmp_path / "a", "--base", tmp_path / "copy")
    assert re.search(r"note: .* was trained on a file with SHA-256 \w{12}\.\.\., .*copy.* has", capsys.readouterr().out)


def test_base_of_another_family(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Other sizes show in the shapes; the same sizes in what the file records."""
    other = tiny.write_family(tmp_path / "other", num_clips=0, family="5b").transformer
    with pytest.raises(
        CheckpointError, match=r"was trained on .*sin/cos positions.* is .*rotary.*: use a LoRA of that"
    ):
        convert(checkpoints.run, "sat", tmp_path / "a", "--base", other)
    there = convert(checkpoints.run, "comfyui", tmp_path / "b", "--base", checkpoints.family.transformer)
    with pytest.raises(CheckpointError, match=r"was trained on .*sin/cos positions.* is .*rotary"):
        convert(there, "sat", tmp_path / "c", "--base", other)
    name = "model.diffusion_model.transformer.layers.2.attention.dense.matrix_{}.0"
    more = {name.format("A"): torch.ones(RANK, 64), name.format("B"): torch.ones(64, RANK)}
    write_checkpoint(tmp_path / "deeper", 1, {**read_checkpoint(checkpoints.run).module, **more}, {})
    with pytest.raises(CheckpointError, match=r"adapts 3 layers of width 64, but .* 2 layers.*: it belongs to another"):
        convert(tmp_path / "deeper", "sat", tmp_path / "d", "--base", checkpoints.family.transformer)


def first_layer(checkpoints: Checkpoints, folder: Path) -> Path:
    """The LoRA on layer 0 alone, as the original SAT code saves it with a layer range."""
    run = read_checkpoint(checkpoints.run)
    half = {key: value for key, value in run.module.items() if "layers.0" in key}
    write_checkpoint(folder, 1, half, {"lora": run.extra["lora"]})
    return folder


def test_lora_on_the_first_layers(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """SAT gets zeros for the rest, and samples with them; others get what is there."""
    half = first_layer(checkpoints, tmp_path / "half")
    for layout in LAYOUTS:
        assert len(read_adapter(convert(half, layout, tmp_path / layout)).matrices) == 8
    assert "zeros" not in capsys.readouterr().out
    sat = convert(half, "sat", tmp_path / "sat", "--base", checkpoints.family.transformer)
    assert "note: 8 matrices that the file doesn't have are zeros: those layers stay" in capsys.readouterr().out
    there, stored = read_checkpoint(half).module, read_checkpoint(sat).module
    assert stored.keys() == read_checkpoint(checkpoints.run).module.keys()
    for name, value in stored.items():
        assert torch.equal(value, there[name]) if name in there else not value.any()
    merged = tmp_path / "merged"
    merge_lora.main(
        ["--adapter", str(half), "--base", str(checkpoints.family.transformer), "--output_path", str(merged)]
    )
    tiny_run = {"prompts": ["a red square moves left"], "sampling_image_size": [tiny.HEIGHT, tiny.WIDTH]}
    latents = []
    for load in (sat, merged):
        given = {**tiny_run, "load": load, "output_dir": load / "out", "sampling_num_frames": 3, "num_steps": 2}
        overrides = [f"args.{key}={value}" for key, value in given.items()]
        overrides += ["args.device=cpu", "args.only_save_latents=true"]
        run_sampling(
            load_config([str(checkpoints.family.model_yaml)], overrides, "sample"),
            ProcessGroups(0, 1, 0, torch.device("cpu")),
        )
        (file,) = (load / "out").rglob("*.safetensors")
        latents += load_file(file).values()
    torch.testing.assert_close(*latents, rtol=1e-3, atol=1e-3)


def test_published_owner_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    name = "model.diffusion_model.transformer.layers.{}.attention.dense.matrix_{}.0"
    module = {name.format(i, k): torch.ones((2, 1920) if k == "A" else (1920, 2)) for i in range(30) for k in "AB"}
    write_checkpoint(tmp_path / "lora", 1, module, {})
    with pytest.raises(CheckpointError, match=r"adapts 30 layers of width 1920 \(as CogVideoX-2B\), but"):
        convert(tmp_path / "lora", "sat", tmp_path / "a", "--base", checkpoints.family.transformer)


def test_mistakes(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--to sat needs --base"):
        convert(checkpoints.run, "sat", tmp_path / "a")
    with pytest.raises(ConfigError, match=r"invalid choice: 'peft'.*see --help"):
        convert(checkpoints.run, "peft", tmp_path / "a")
    with pytest.raises(ConfigError, match=r"-1 is not a positive number"):
        convert(checkpoints.run, "diffusers", tmp_path / "a", "--alpha", -1)
    with pytest.raises(CheckpointError, match=r"states alpha 6, not 2: leave --alpha out"):
        convert(checkpoints.run, "diffusers", tmp_path / "a", "--alpha", 2)
    with pytest.raises(CheckpointError, match=r"holds LoRA adapters itself: give the plain model"):
        convert(checkpoints.run, "sat", tmp_path / "a", "--base", checkpoints.old_lora)
    with pytest.raises(CheckpointError, match=r"holds no LoRA adapters"):
        convert(checkpoints.family.transformer, "diffusers", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    convert(checkpoints.run, "diffusers", tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"exists and is not empty"):
        convert(checkpoints.run, "diffusers", tmp_path / "a")


@pytest.mark.parametrize("tool", [convert_lora, export_sat_lora_weight])
def test_as_a_program(tool: Any, checkpoints: Checkpoints, tmp_path: Path) -> None:
    help_text = subprocess.run([sys.executable, tool.__file__, "--help"], capture_output=True, text=True, check=True)
    assert "python tools/" in help_text.stdout
    assert run_cli(tool.main, ["--nonsense"]) == 2
