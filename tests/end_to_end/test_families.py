"""Training of the families beyond 2B: every method, one and two processes, resume, previews, single frames."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.errors import CheckpointError, ConfigError, DataError
from cogvideox.parallel.groups import start_process_groups
from cogvideox.training.trainer import Trainer
from PIL import Image
from processes import run_processes

FAMILIES = ("5b", "5b_i2v", "1.5", "1.5_i2v")
FULL = ("model.network_config.params.modules.lora_config=null", "model.not_trainable_prefixes=[]")
# As in test_train: sums in another order, amplified by updates with lr 1e-2.
SAME_FP32 = 2e-5
# What each family is trained with: method, and what must not change a loss.
RUNS: dict[str, tuple[str, ...]] = {
    **{f"{family} lora": () for family in FAMILIES},
    **{f"{family} full": FULL for family in FAMILIES},
    "1.5_i2v zero2": (
        *FULL,
        "deepspeed.zero_optimization.stage=2",
        "args.checkpoint_activations=true",
        "args.offload_activations=true",
    ),
    "5b_i2v zero1": ("deepspeed.zero_optimization.stage=1", "args.checkpoint_activations=true"),
}


@pytest.fixture(scope="session")
def settings_of(family: tiny.TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """YAML of a LoRA run of each family, with the VAE, text encoder and clips of the 2B one."""
    files = {}
    for name in FAMILIES:
        folder = tmp_path_factory.mktemp(name)
        for part in ("vae", "t5", "clips"):
            (folder / part).symlink_to(family.folder / part)
        paths = tiny.TinyFamily(folder)
        tiny.write_transformer(paths, family=name)
        files[name] = tiny.write_yaml(folder / "lora.yaml", tiny.train_settings(paths, folder / "unused", name))
    return files


@pytest.fixture
def train_family(settings_of: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """As `train`, of a family by its name."""

    def run(name: str, *overrides: str, save: str = "runs") -> dict[str, Any]:
        return train_one(settings_of[name], (f"args.save={tmp_path / save}", *overrides))

    return run


def train_one(settings: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    config = load_config([str(settings)], list(overrides), "train")
    return Trainer(config, start_process_groups("cpu")).fit()


def losses(summary: dict[str, Any]) -> list[float]:
    return [line["train_loss"] for line in tiny.read_lines(Path(summary["run_folder"])) if "train_loss" in line]


def train_all(settings: dict[str, Path], save: Path, micro: int) -> dict[str, list[float]]:
    common = (f"args.save={save}", "args.train_iters=2", f"deepspeed.train_micro_batch_size_per_gpu={micro}")
    return {
        run: losses(train_one(settings[run.split()[0]], (*common, *overrides, f"args.experiment_name={number}")))
        for number, (run, overrides) in enumerate(RUNS.items())
    }


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_losses(settings_of: dict[str, Path], tmp_path: Path) -> None:
    one = train_all(settings_of, tmp_path / "one", 2)
    two, other = run_processes(train_all, 2, settings_of, tmp_path / "two", 1)
    assert two.keys() == other.keys() == RUNS.keys()
    for run in RUNS:
        assert len(one[run]) == 2 and two[run] == pytest.approx(one[run], rel=SAME_FP32), run
    # ZeRO and activation checkpointing change nothing either, and families are not each other.
    assert one["1.5_i2v zero2"] == pytest.approx(one["1.5_i2v full"], rel=SAME_FP32)
    assert one["5b_i2v zero1"] == pytest.approx(one["5b_i2v lora"], rel=SAME_FP32)
    assert len({one[f"{family} lora"][0] for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("name", ["5b_i2v", "1.5_i2v"])
def test_resumed_equals_uninterrupted(train_family: Callable[..., Any], tmp_path: Path, name: str) -> None:
    common = ("args.train_iters=4", "args.save_interval=2", "model.noised_image_dropout=0.5")
    whole = Path(train_family(name, *common)["run_folder"])
    part = tmp_path / "stopped" / whole.name
    shutil.copytree(whole, part, ignore=shutil.ignore_patterns("4", "metrics.jsonl"))
    (part / "latest").write_text("2")
    resumed = train_family(name, *common, "args.resume=latest", save="stopped")
    assert resumed["run_folder"] == str(part)
    assert losses(resumed) == [line["train_loss"] for line in tiny.read_lines(whole) if "train_loss" in line][2:]
    straight, again = tiny.read_states(whole), tiny.read_states(part)
    assert straight.keys() == again.keys()
    assert all(torch.equal(straight[each], again[each]) for each in straight)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 40), (220, 40, 40)).save(tmp_path / "start.png")
    return tmp_path / "start.png"


@pytest.mark.parametrize("name", ["5b_i2v", "1.5_i2v"])
def test_evaluation_of_image_to_video(train_family: Callable[..., Any], picture: Path, name: str) -> None:
    arguments = ("args.train_iters=2", "args.eval_split=0.25", f"args.eval_prompts=['a red square@@{picture}']")
    summary = train_family(name, *arguments, "deepspeed.optimizer.params.lr=0")
    for step in ("0", "2"):
        assert (Path(summary["samples"][step]) / "0_a_red_square.mp4").stat().st_size > 500
    (_, first), (_, last) = summary["valid_loss"]
    assert first == last  # the weights have not moved; noise, timesteps and images are the same each time


def test_previews_that_do_not_suit_the_model_stop_the_run_at_once(
    train_family: Callable[..., Any], picture: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"args.eval_prompts, line 1: 'a red square' has no image"):
        train_family("5b_i2v", "args.eval_prompts=['a red square']")
    with pytest.raises(DataError, match=r"args.eval_prompts, line 1: there is no image file nowhere.png"):
        train_family("5b_i2v", "args.eval_prompts=['a red square@@nowhere.png']")
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(DataError, match=r"args.eval_prompts, line 1: .*broken.png: can't be read as an image"):
        train_family("5b_i2v", f"args.eval_prompts=['a red square@@{tmp_path / 'broken.png'}']")
    with pytest.raises(DataError, match="is for image-to-video models"):
        train_family("5b", f"args.eval_prompts=['a red square@@{picture}']")
    assert not (tmp_path / "runs").exists()


def test_padded_clips_are_previewed_at_their_length(train_family: Callable[..., Any]) -> None:
    import av

    summary = train_family("1.5", "args.train_iters=1", "args.eval_prompts=['a red square']")
    with av.open(str(Path(summary["samples"]["1"]) / "0_a_red_square.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == tiny.FRAMES


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, (name, colour) in enumerate(tiny.COLOURS.items()):
        Image.new("RGB", (60, 40), colour).save(folder / f"{index}.jpg")
        (folder / f"{index}.txt").write_text(f"a {name} square\n")
    return folder


def test_images_train_as_clips_of_one_frame(
    train: Callable[..., Any],
    train_family: Callable[..., Any],
    pictures: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    arguments = (f"args.train_data=[{pictures}]", "data.max_num_frames=1", "args.train_iters=2", "args.eval_split=0.25")
    with caplog.at_level("INFO", logger="cogvideox"):
        summary = train(*arguments, "args.eval_prompts=['a red square']")
    assert "4 of 4 images usable" in caplog.text
    assert len(losses(summary)) == 2 and len(summary["valid_loss"]) == 2
    with Image.open(Path(summary["samples"]["2"]) / "0_a_red_square.png") as preview:
        assert preview.size == (tiny.WIDTH, tiny.HEIGHT)
    assert len(losses(train_family("5b_i2v", *arguments))) == 2


def test_images_where_the_family_takes_none(train_family: Callable[..., Any], pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.max_num_frames: .*nearest: 9"):
        train_family("1.5", f"args.train_data=[{pictures}]", "data.max_num_frames=1")
    with pytest.raises(DataError, match=r"holds 4 images and no video; .* with data.max_num_frames=1"):
        train_family("5b", f"args.train_data=[{pictures}]")


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("5b", "5b_i2v", "32 input channels"),
        ("5b_i2v", "5b", "16 input channels"),
        ("5b", "1.5", "patches of 2 frames"),
        ("1.5", "5b", "patches of 2 frames"),
        ("1.5_i2v", "1.5", "16 input channels"),
        ("1.5_i2v", "5b_i2v", "patches of 2 frames"),
    ],
)
def test_weights_of_another_family_are_refused_in_one_line(
    train_family: Callable[..., Any], settings_of: dict[str, Path], model: str, weights: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        train_family(model, f"args.load={settings_of[weights].parent / 'transformer'}")
    assert "\n" not in str(caught.value)
