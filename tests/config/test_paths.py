"""Paths that are not there, or are something else: one line that says what to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cogvideox.commands import ROOT
from cogvideox.config.load import load_config
from cogvideox.conversion.diffusers_import.options import parse_options
from cogvideox.errors import ConfigError

CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()


def complaint(*overrides: str, model: str = "cogvideox_2b_lora.yaml", settings: str = "sft.yaml") -> str:
    files = [str(CONFIGS / model), str(CONFIGS / settings)]
    with pytest.raises(ConfigError) as caught:
        load_config(files, ["args.train_data=[clips]", *overrides], "train", check_files=True)
    return str(caught.value)


def conversion(text: str) -> tuple[str, str]:
    """(source, output) of the hf2sat command in a message; the program's own parser reads it."""
    words = shlex.split(re.search(r"\S*python\S* \S*tools/convert_weight_hf2sat\.py .*$", text)[0])  # type: ignore[index]
    options = parse_options(words[2:])
    return options.source, str(options.output)


@pytest.mark.parametrize(
    ("model", "settings", "name", "folder"),
    [
        ("cogvideox_2b_lora.yaml", "sft.yaml", "THUDM/CogVideoX-2b", "CogVideoX-2b-sat"),
        ("cogvideox_5b.yaml", "sft.yaml", "THUDM/CogVideoX-5b", "CogVideoX-5b-sat"),
        ("cogvideox_5b_i2v.yaml", "sft.yaml", "THUDM/CogVideoX-5b-I2V", "CogVideoX-5b-I2V-sat"),
        ("cogvideox1.5_5b_lora.yaml", "sft_1.5.yaml", "THUDM/CogVideoX1.5-5B", "CogVideoX1.5-5B-sat"),
        ("cogvideox1.5_5b_i2v.yaml", "sft_1.5.yaml", "THUDM/CogVideoX1.5-5B-I2V", "CogVideoX1.5-5B-I2V-sat"),
    ],
)
def test_no_weights_yet_is_said_once(model: str, settings: str, name: str, folder: str) -> None:
    """And the command puts them where the file of 1.0 looks for them."""
    text = complaint(model=model, settings=settings)
    assert "\n" not in text and "the model's weights are not there: " in text
    source, output = conversion(text)
    assert (source, output) == (name, folder)
    if "1.5" not in model:  # published with both transformers in one folder
        for part in ("transformer (args.load)", "vae/3d-vae.pt", "t5-v1_1-xxl"):
            assert f"{output}/{part}" in text


def weights(tmp_path: Path) -> list[str]:
    """Overrides to parts that are there."""
    for name in ("vae.pt", "t5", "transformer"):
        (tmp_path / name).mkdir()
    model = "model.conditioner_config.params.encoder.params.model_dir=./t5"
    return ["args.load=transformer", "model.first_stage_config.params.ckpt_path=vae.pt", model]


def test_one_missing_part(tmp_path: Path) -> None:
    words = weights(tmp_path)
    text = complaint(*words, "model.first_stage_config.params.ckpt_path=no.pt")
    assert "no such file or folder: no.pt; set these keys to where they are, or download and convert" in text
    assert complaint(*words, "args.load=ckpts/run").endswith("no such file or folder: ckpts/run")


def test_a_hub_name_is_no_checkpoint(tmp_path: Path) -> None:
    text = complaint(*weights(tmp_path), "args.load=zai-org/CogVideoX-5b")
    assert "args.load: no such file or folder: zai-org/CogVideoX-5b; as a name on Hugging Face" in text
    assert conversion(text) == ("zai-org/CogVideoX-5b", "CogVideoX-5b-sat")
    assert conversion(complaint("args.load=me/cogvideox-style"))[0] == "me/cogvideox-style"


@pytest.mark.parametrize(
    "given", ["my pipe", "my pipe/transformer", "my pipe/transformer/diffusion_pytorch_model.safetensors"]
)
def test_a_diffusers_folder_is_no_checkpoint(tmp_path: Path, given: str) -> None:
    part = tmp_path / "my pipe" / "transformer"
    part.mkdir(parents=True)
    (tmp_path / "my pipe" / "model_index.json").write_text("{}")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (part / name).write_text("{}")
    text = complaint(*weights(tmp_path), f"args.load={given}")
    assert f"args.load: {given} holds weights in diffusers' layout" in text
    assert conversion(text) == ("my pipe", "my pipe-sat")
