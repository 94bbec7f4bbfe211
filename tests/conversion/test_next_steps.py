"""What the tools print at the end can be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from cogvideox.commands import ROOT
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.conversion.diffusers_export.options import parse_options
from cogvideox.conversion.next_steps import after_comfyui, after_diffusers, after_sat
from cogvideox.released import FAMILIES
from cogvideox.weights.families import TransformerFacts


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A SAT folder in name only."""
    folder = tmp_path / "my result"
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    (folder / "1" / "mp_rank_00_model_states.pt").touch()
    return folder


def commands_of(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


def load(words: list[str]) -> Config:
    assert words[:2] == ["bash", "inference.sh"]
    files = [word for word in words[2:] if Path(word).is_file()]
    return load_config(files, [word for word in words[2:] if word not in files], "sample")


def test_settings_of_the_run_go_on(result: Path) -> None:
    trained = load_config(["configs/cogvideox_5b_lora.yaml", "configs/sft.yaml"], ["args.train_data=[a]"], "train")
    (result / "training_config.yaml").write_text(trained.resolved_yaml)
    sample, export = commands_of(after_sat(result, None))
    config = load(sample)
    assert config.sample_args.load == str(result) and config.sample_args.bf16 and not config.sample_args.fp16
    assert config.model == trained.model
    options = parse_options(export[2:])
    assert options.checkpoint == result and options.base == (str(result / "training_config.yaml"),)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("lora", [False, True])
def test_a_released_model_has_its_shipped_files(result: Path, family: object, lora: bool) -> None:
    facts = facts_of(family)
    sample, export = commands_of(after_sat(result, facts, lora=lora))
    config = load(sample)
    shipped = family.yaml.replace(".yaml", "_lora.yaml") if lora else family.yaml  # type: ignore[attr-defined]
    assert sample[2] == shipped and parse_options(export[2:]).base == (shipped,)
    assert config.sample_args.load == str(result) and config.sample_args.prompts[0].startswith("a ship at sea")
    assert not config.warnings


def facts_of(family: object) -> TransformerFacts:
    """As if read from its weights."""
    known = vars(family)
    return TransformerFacts(
        hidden_size=known["hidden_size"],
        num_layers=known["num_layers"],
        head_dim=64,
        qk_norm=True,
        patch_size=(known["generation"].frames_per_patch, 2, 2),
        in_channels=32 if known["image_input"] else 16,
        out_channels=16,
        text_width=4096,
        time_embed_dim=512,
        rotary=known["rotary"],
        table_length=17776 if known["learned_table"] or not known["rotary"] else None,
        ofs_embed_dim=512 if known["has_ofs"] else None,
        lora_rank=None,
    )


def test_nothing_is_said_of_a_model_that_nobody_describes(result: Path) -> None:
    assert after_sat(result, None) == ""
    (result / "training_config.yaml").write_text("args: {nonsense: 1}\n")
    assert after_sat(result, None) == ""


def test_comfyui(tmp_path: Path) -> None:
    (tmp_path / "a b.safetensors").touch()
    (words,) = commands_of(after_comfyui(tmp_path))
    assert words == ["cp", str(tmp_path / "a b.safetensors"), "ComfyUI/models/loras/"]


def test_python_of_the_model_card(tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    folder.mkdir()
    assert after_diffusers(folder) == ""
    (folder / "README.md").write_text('# pipe\n```python\npipe = load("pipe")\n\nrun(pipe)\n```\nmore\n```\nx\n```\n')
    code = "\n".join(line.strip() for line in after_diffusers(folder).splitlines()[2:])
    seen: list[str] = []
    exec(compile(code, "card", "exec"), {"load": str, "run": seen.append})
    assert seen == [str(folder)]
