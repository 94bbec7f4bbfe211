"""1.5 gets its own sampling defaults, and a frame rate of the other generation warns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config, Kind
from config.conftest import PUBLISHED, ROOT

WIDTH = "model.network_config.params.hidden_size"
HEADS = "model.network_config.params.num_attention_heads"


def ours(kind: Kind, *words: str) -> Config:
    """The shipped files of these names and the overrides among them."""
    base = [str(ROOT / "configs" / f"{word}.yaml") for word in words if "=" not in word]
    required = ["args.train_data=[clips]"] if kind == "train" else []
    return load_config(base, [*required, *(word for word in words if "=" in word)], kind)


def video(config: Config) -> tuple[object, int, int]:
    args = config.sample_args
    return args.sampling_image_size, args.sampling_num_frames, args.sampling_fps


@pytest.mark.parametrize(
    ("family", "size"), [("cogvideox1.5_5b", (768, 1360)), ("cogvideox1.5_5b_i2v", None)], ids=lambda value: str(value)
)
def test_a_1_5_model_file_alone_samples_as_it_was_trained(family: str, size: object) -> None:
    config = ours("sample", family)
    assert video(config) == (size, 22, 16)
    assert not config.warnings
    shown = "null (from the image)" if size is None else "[768, 1360]"
    assert config.notices == (
        f"not given, so as CogVideoX 1.5 was trained: args.sampling_image_size {shown}, "
        "args.sampling_num_frames 22, args.sampling_fps 16",
    )


def test_1_0_keeps_its_defaults() -> None:
    config = ours("sample", "cogvideox_5b_i2v")
    assert video(config) == ((480, 720), 13, 8)
    assert not config.warnings and not config.notices


def test_only_what_no_file_says_is_filled_in() -> None:
    config = ours("sample", "cogvideox1.5_5b", "args.sampling_num_frames=21", "args.sampling_fps=12")
    assert video(config) == ((768, 1360), 21, 12)
    assert config.notices == ("not given, so as CogVideoX 1.5 was trained: args.sampling_image_size [768, 1360]",)


def test_a_published_1_5_image_file_without_a_size_takes_the_image_s(tmp_path: Path) -> None:
    text = (PUBLISHED / "inference_1.5_i2v.yaml").read_text()
    file = tmp_path / "inference.yaml"
    file.write_text(re.sub(r"  sampling_(image_size|fps|num_frames): .*\n", "", text))
    config = load_config([str(PUBLISHED / "cogvideox1.5_5b_i2v.yaml"), str(file)], [], "sample")
    assert video(config) == (None, 22, 16)


def test_defaults_in_force_stand_in_the_resolved_file(tmp_path: Path) -> None:
    config = ours("sample", "cogvideox1.5_5b_i2v")
    file = tmp_path / "resolved.yaml"
    file.write_text(config.resolved_yaml)
    again = load_config([str(file)], [], "sample")
    assert again.args == config.args and not any("not given" in line for line in again.notices)


@pytest.mark.parametrize(
    ("kind", "words", "match"),
    [
        (
            "train",
            ["cogvideox1.5_5b", "sft"],
            r"sft\.yaml:\d+: data\.fps: CogVideoX 1\.5 .* at 16 .*; at 8 clips move at twice the speed: set 16, "
            r"as configs/sft_1\.5\.yaml does",
        ),
        (
            "sample",
            ["cogvideox1.5_5b_i2v", "inference"],
            r"inference\.yaml:\d+: args\.sampling_fps: CogVideoX 1\.5 .*; at 8 videos play at half the speed: set 16, "
            r"as configs/inference_1\.5\.yaml does",
        ),
        ("train", ["cogvideox_2b_lora", "sft", "data.fps=16"], r"CogVideoX 1\.0 .*at 16 clips move at half the speed"),
        ("sample", ["cogvideox_5b", "inference", "args.sampling_fps=16"], r"at 16 videos play at twice the speed: set"),
    ],
)
def test_a_rate_of_the_other_generation_warns(kind: Kind, words: list[str], match: str) -> None:
    warnings = ours(kind, *words).warnings
    assert len(warnings) == 1 and re.search(match, warnings[0]), warnings


def test_a_rate_that_no_file_says_warns_too(tmp_path: Path) -> None:
    text = (PUBLISHED / "sft_1.5.yaml").read_text()
    file = tmp_path / "sft.yaml"
    file.write_text(text.replace("    fps: 16\n", ""))
    config = load_config([str(PUBLISHED / "cogvideox1.5_5b.yaml"), str(file)], [], "train")
    assert any(line.startswith("data.fps: CogVideoX 1.5") for line in config.warnings)


def test_other_rates_and_other_sizes_are_nobody_s_business() -> None:
    assert not ours("sample", "cogvideox1.5_5b", "inference_1.5", "args.sampling_fps=24").warnings
    assert not ours("train", "cogvideox1.5_5b", "sft_1.5", "data.fps=8", f"{WIDTH}=768", f"{HEADS}=12").warnings


def test_a_part_of_a_configuration_is_not_asked_for_its_rate() -> None:
    config = load_config([str(ROOT / "configs/cogvideox1.5_5b.yaml")], [], "sample", partial=True)
    assert not config.warnings and not config.notices
