"""README.md and licence of every export: what they say, that their code runs, and that nobody's file is overwritten."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import tiny
import torch
from cogvideox.commands import ROOT
from cogvideox.conversion.licences import find_licence_file
from cogvideox.conversion.model_card import Card, Kind, family_named, write_card
from cogvideox.released import FAMILIES
from cogvideox.weights.base import LoraFacts
from convert_lora import main as convert_lora
from huggingface_hub import ModelCard
from tiny_checkpoints import Checkpoints

KINDS: tuple[Kind, ...] = ("pipeline", "transformer", "vae", "lora", "comfyui", "sat", "original")
LORA = LoraFacts(128, 64.0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_header_and_licence_of_every_family(family: Any) -> None:
    for kind in KINDS:
        data = ModelCard(Card(kind, family, family, LORA).text("my_model")).data
        assert data.base_model == family.hub_name
        assert data.license == ("apache-2.0" if family.name == "CogVideoX-2B" else "other")
        assert data.pipeline_tag == ("image-to-video" if family.image_input else "text-to-video")
    text = Card("lora", family, family, LORA).text("my_model")
    commercial = "Commercial use needs a registration" in text
    assert commercial == (family.name != "CogVideoX-2B") and ("Apache-2.0" in text) != commercial


def test_code_of_every_card_compiles_and_names_its_pipeline() -> None:
    for family in FAMILIES:
        for kind in KINDS[:4]:
            code = "\n".join(Card(kind, family, family, None).snippet("my_model"))
            compile(code, "card", "exec")
            assert ("ImageToVideo" in code) == family.image_input
            assert f"num_frames={81 if family.generation.version == '1.5' else 49}" in code


def code_of(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_a_pipeline_runs(exported: Callable[[str], Path], monkeypatch: Any, tmp_path: Path) -> None:
    """The code in the README of a tiny pipeline makes a video file, at that model's size and in two steps."""
    code = code_of(exported("2b"))
    assert "height=480, width=720, num_frames=49," in code and f"max_sequence_length={tiny.TEXT_LENGTH}," in code
    size = f"height={tiny.HEIGHT}, width={tiny.WIDTH}, num_frames={tiny.FRAMES},"
    code = code.replace("height=480, width=720, num_frames=49,", size).replace("steps=50", "steps=2")
    monkeypatch.chdir(exported("2b").parent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exec(compile(code, "card", "exec"), {})
    with av.open("ship.mp4") as video:
        assert len(list(video.decode(video=0))) == tiny.FRAMES


def lora_export(run: Path, output: Path, layout: str = "diffusers") -> str:
    convert_lora([str(run), "--to", layout, "--output_path", str(output)])
    return (output / "README.md").read_text()


@pytest.fixture
def run(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A run folder with what a training leaves."""
    folder = tmp_path / "run"
    shutil.copytree(checkpoints.run, folder)
    tree = tiny.train_settings(checkpoints.family, tmp_path)
    tree["model"] = tiny.model_section(checkpoints.family, lora={"r": 4, "lora_alpha": 6.0})
    tiny.write_yaml(folder / "training_config.yaml", tree)
    (folder / "summary.json").write_text('{"training_clips": 48}')
    return folder


def test_what_a_run_tells(run: Path, tmp_path: Path) -> None:
    text = lora_export(run, tmp_path / "my_lora")
    for row in (
        "| LoRA | rank 4, alpha 6 (scale 1.5) |",
        "| steps | 20 |",
        "| training clips | 48 |",
        "| each of | 9 frames, 32 x 48, 8 per second |",
        "| learning rate | 0.01 |",
    ):
        assert row in text
    assert 'load_lora_weights("my_lora")' in text and "height=32, width=48, num_frames=9" in text
    assert str(tmp_path) not in text, "a card travels: no folders of this machine"


@pytest.mark.parametrize("content", ["no json", "[1]", '{"training_clips": "many"}'])
def test_a_summary_that_says_nothing(content: str, run: Path, tmp_path: Path) -> None:
    (run / "summary.json").write_text(content)
    assert "training clips" not in lora_export(run, tmp_path / "out")


def test_a_users_readme_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    write_card(tmp_path, Card("lora", FAMILIES[0], FAMILIES[0], None), "out")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_licence_of_the_base_goes_along(checkpoints: Checkpoints, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(checkpoints.family.transformer, weights / "transformer")
    (weights / "LICENSE").write_text("the licence of these weights")
    base = str(weights / "transformer")
    convert_lora([str(checkpoints.run), "--to", "diffusers", "--base", base, "--output_path", str(tmp_path / "out")])
    assert (tmp_path / "out" / "LICENSE").read_text() == "the licence of these weights"


def test_a_programs_own_licence_is_not_that_of_weights(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "LICENSE").write_text("of a program")
    assert find_licence_file([tmp_path / "1" / "mp_rank_00_model_states.pt"]) is None
    assert find_licence_file([ROOT / "weights" / "mp_rank_00_model_states.pt"]) is None


def test_the_model_that_an_adapter_names() -> None:
    found = family_named({"model": {"name": "CogVideoX1.5-5B-I2V (hidden size 3072, 42 layers)"}})
    assert found is not None and found.name == "CogVideoX1.5-5B-I2V"
    assert family_named({}) is None and family_named({"model": {"name": "CogVideoX-2B layout of another size"}}) is None


@pytest.mark.parametrize(("family", "warns"), [("2b", True), ("5b", True), ("1.5", False)])
def test_comfyui_computes_1_0_wrongly(family: str, warns: bool, family_of: Any, tmp_path: Path, capsys: Any) -> None:
    """ComfyUI's own nodes are right for 1.5 only; the wrapper is recommended for the others."""
    from cogvideox.weights.families import TRANSFORMER_PREFIX
    from cogvideox.weights.lora_file import complete
    from cogvideox.weights.sat_folder import write_checkpoint

    start = {
        f"transformer.layers.0.attention.dense.matrix_{kind}.0": torch.ones(shape)
        for kind, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    module = {TRANSFORMER_PREFIX + name: value for name, value in complete(start, 2).items()}
    write_checkpoint(tmp_path / "lora", 1, module, {"lora": {"r": 4, "alpha": 4.0}})
    base = ["--base", str(family_of(family).transformer)]
    for layout, expected in (("comfyui", warns), ("comfyui-wrapper", False)):
        arguments = [str(tmp_path / "lora"), "--to", layout, "--output_path", str(tmp_path / layout)]
        convert_lora([*arguments, *base])
        text = capsys.readouterr().out
        assert ("compute 1.0 models (2B, 5B, 5B-I2V) wrongly" in text) == expected
        assert ("--to comfyui-wrapper" in text) == expected
