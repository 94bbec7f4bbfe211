"""The commands that a run ends with do what they say: pasted into a shell, they load."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import sample_video
import train_video
from cogvideox.commands import ROOT
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.training.next_steps import after_training

SHIPPED = [
    (["configs/demo_lora.yaml", "configs/demo_sft.yaml"], "inference.yaml"),
    (["configs/cogvideox_2b_lora.yaml", "configs/sft.yaml"], "inference.yaml"),
    (["configs/cogvideox_5b_i2v.yaml", "configs/sft.yaml", "configs/low_memory.yaml"], "inference_i2v.yaml"),
    (["configs/cogvideox1.5_5b_lora.yaml", "configs/sft_1.5.yaml"], "inference_1.5.yaml"),
    (["configs/cogvideox1.5_5b_i2v_lora.yaml", "configs/sft_1.5.yaml"], "inference_1.5_i2v.yaml"),
]
CAPTION = """a "red" ship's [bow], ${HOME}: 50 % of $(it) `all`; # ~ \\ ünder & over"""


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def commands_of(text: str) -> list[list[str]]:
    """What a shell makes of the indented lines."""
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


def load(words: list[str], script: str) -> Config:
    assert words[0] == "bash" and words[1] == script and Path(words[1]).is_file()
    files = [word for word in words[2:] if Path(word).is_file()]
    overrides = [word for word in words[2:] if word not in files]
    return load_config(files, overrides, "sample" if script == "inference.sh" else "train")


@pytest.mark.parametrize(("files", "inference"), SHIPPED, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_commands_load_with_the_settings_of_the_run(files: list[str], inference: str) -> None:
    overrides = ["args.train_data=[clips]", "data.max_num_frames=17", "model.scale_factor=0.9", "args.device=cpu"]
    config = load_config(files, [*overrides, "args.eval_prompts=[]"], "train")
    run = Path("runs/my style [1]")
    sample, export, longer = commands_of(after_training(config, run, 1, CAPTION))

    sampled = load(sample, "inference.sh")
    assert f"configs/{inference}" in sample
    assert sampled.sample_args.load == str(run) and sampled.sample_args.device == "cpu"
    assert sampled.model.scale_factor == 0.9
    assert config.data is not None and sampled.sample_args.sampling_fps == config.data.fps
    if "1.5_i2v" not in inference:  # whose size comes from the image, as the model was made for
        assert list(sampled.sample_args.sampling_image_size or ()) == list(config.data.video_size)
    assert sampled.sample_args.sampling_num_frames == (6 if "1.5" in inference else 5)
    image = "@@image.png" if "i2v" in inference else ""
    assert sampled.sample_args.prompts == [f"{CAPTION}{image}"]

    assert export[1] == "tools/convert_weight_sat2hf.py" and Path(export[0]).is_file()
    assert export[2:] == ["--checkpoint", str(run), "--output_path", str(run / "diffusers"), "--verify"]

    again = load(longer, "finetune_single_gpu.sh")
    assert again.train_args.resume == str(run)
    assert again.train_args.train_iters == 2 * config.train_args.train_iters
    assert again.data == config.data and again.model == config.model


def test_sizes_of_the_generation_are_not_repeated() -> None:
    config = load_config(["configs/cogvideox_2b_lora.yaml", "configs/sft.yaml"], ["args.train_data=[clips]"], "train")
    sample, *_ = commands_of(after_training(config, Path("ckpts/run"), 1, "a ship"))
    assert sample[2:4] == ["configs/cogvideox_2b_lora.yaml", "configs/inference.yaml"]
    assert sample[4:] == ["args.load=ckpts/run", 'args.prompts=["a ship"]']


def test_a_long_caption_is_cut_between_words_and_a_preview_goes_before_it() -> None:
    files = ["configs/cogvideox_2b_lora.yaml", "configs/sft.yaml"]
    config = load_config(files, ["args.train_data=[clips]", "args.eval_prompts=[]"], "train")
    sample, *_ = commands_of(after_training(config, Path("ckpts/run"), 1, "word " * 100))
    assert load(sample, "inference.sh").sample_args.prompts == ["word " * 39 + "word"]
    config = load_config(files, ["args.train_data=[clips]", "args.eval_prompts=[a cup]"], "train")
    sample, *_ = commands_of(after_training(config, Path("ckpts/run"), 1, "a ship"))
    assert load(sample, "inference.sh").sample_args.prompts == ["a cup"]


def test_check_accepts_the_commands_of_a_real_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(["configs/demo_lora.yaml", "configs/demo_sft.yaml"], [f"args.save={tmp_path}"], "train")
    run = tmp_path / "it's 2025"
    run.mkdir()
    (run / "training_config.yaml").write_text(config.resolved_yaml)
    sample, _, longer = commands_of(after_training(config, run, 1, "a ship"))
    sample_video.main(["--base", *sample[2:], "--check"])
    train_video.main(["--base", *longer[2:], "--check"])
    assert capsys.readouterr().out.count("the configuration is valid") == 2
