"""One sample's way, against what training's own reader gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import check_dataset
import numpy as np
import pytest
import torch
import train_video
from cogvideox.data.rows import Rows
from cogvideox.data.transforms import fit_to_bucket
from cogvideox.diffusion.timesteps import StepRandomness
from cogvideox.doctor.explain import crop_box
from cogvideox.errors import ConfigError
from cogvideox.geometry import Bucket
from cogvideox.model.video_diffusion import VideoDiffusion
from doctor.conftest import write_clip


def explained(settings: Path, page: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    check_dataset.main(["--base", str(settings), *words, "--output", str(page)])
    return capsys.readouterr().out


def test_by_number_and_by_name(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(settings, tmp_path / "clip.html", capsys, "--explain", "tall.mp4")
    number = re.search(r"^clip (\d+): .*/tall\.mp4$", text, re.MULTILINE)
    assert number is not None
    assert explained(settings, tmp_path / "clip.html", capsys, "--explain", number[1]) == text
    assert "17 frames in 2 s, 8 per second; 48 x 30 (height x width)" in text
    # Enlarged to 77 x 48, of which 32 x 48 are kept.
    assert "crop: 19.9 x 30 pixels from the top 13.7, left 0: 41.7 % of the picture, enlarged 1.6 times" in text
    assert re.search(r"used for: training: sample \d+ of 12 of bucket 9x32x48 in the first epoch", text)
    page = (tmp_path / "clip.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 9 and "frame 8, 1 s" in page
    assert "<b>bold" not in page and not re.search(r"https?://", page)


def test_clips_that_are_left_out(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "left out: can't be read" in explained(settings, tmp_path / "a.html", capsys, "--explain", "cut")
    assert "left out: spans" in explained(settings, tmp_path / "a.html", capsys, "--explain", "short.mp4")


def test_windows_and_the_held_out_share(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(3):
        write_clip(folder / f"{number}a.mp4", "long", number, frames=27)
    words = [f"args.train_data=[{folder}]", "args.valid_data=[]", "data.windows=all", "args.eval_split=0.34"]
    texts = [
        explained(settings, tmp_path / "a.html", capsys, *words, "--explain", f"{number}a.mp4#{window}")
        for number in range(3)
        for window in (1, 3)
    ]
    assert ["window: 1 of 3" in text for text in texts] == [True, False] * 3
    assert ["frames: 18 to 26" in text for text in texts] == [False, True] * 3
    held_out = ["evaluation: args.eval_split holds it out" in text for text in texts]
    assert sum(held_out) == 2 and held_out[::2] == held_out[1::2]  # all windows of one file
    with pytest.raises(ConfigError, match="this clip gives 3 window"):
        explained(settings, tmp_path / "a.html", capsys, *words, "--explain", "0a.mp4#4")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("wall_9.mp4", r"there is no such clip; numbers go from 1 to 17; near names: wall_\d.mp4"),
        ("99", "numbers go from 1 to 17"),
        ("0", "there is no such clip"),
        ("wall_2.mp4", "2 clips have this name: .*; give more of the path"),
    ],
)
def test_unknown_clips(settings: Path, tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_dataset.main(["--base", str(settings), "--explain", word, "--output", str(tmp_path / "a.html")])
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("size", [(480, 720), (720, 480), (100, 333), (48, 30)])
def test_the_crop_box_is_what_training_keeps(size: tuple[int, int]) -> None:
    """A ramp of rows and one of columns tell where the pixels of the result are from."""
    bucket = Bucket(1, 64, 96)
    rows, columns = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]), indexing="ij")
    picture = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)[None]
    seen = fit_to_bucket(picture, (bucket.height, bucket.width))[0].to(torch.float32)
    top, left, height, width = crop_box(size, bucket)
    for values, start, extent, whole in ((seen[0], top, height, size[0]), (seen[1].T, left, width, size[1])):
        first, last = float(values[0].mean()), float(values[-1].mean())
        assert first == pytest.approx(255 * start / whole, abs=6)
        assert last == pytest.approx(255 * (start + extent) / whole, abs=6)


@pytest.mark.parametrize("is_stratified", [False, True])
def test_timesteps_are_those_that_training_draws(
    settings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_stratified: bool,
) -> None:
    """Two buckets, and batches of several micro batches. The run itself says what it drew."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(5):
        write_clip(folder / f"{number}a.mp4", "clip", number, size=(36, 36) if number > 2 else (32, 48))
    words = [f"args.train_data=[{folder}]", "args.valid_data=[]", "data.buckets=[[9,32,48],[9,32,32]]"]
    words += ["deepspeed.gradient_accumulation_steps=2", "deepspeed.train_micro_batch_size_per_gpu=1"]
    words += [f"args.save={tmp_path / 'runs'}", "args.train_iters=6", "args.cache=null"]
    if is_stratified:
        words += ["model.loss_fn_config.target=cogvideox.diffusion.loss.VideoDiffusionLoss"]
        words += ["model.loss_fn_config.params.stratified_timesteps=true"]
    drawn: dict[str, int] = {}
    draw = VideoDiffusion.draw

    def draw_and_note(self: VideoDiffusion, rows: Rows, *rest: Any, **more: Any) -> StepRandomness:
        randomness = draw(self, rows, *rest, **more)
        for source, epoch, step in zip(rows.sources, rows.epochs.tolist(), randomness.timestep.tolist(), strict=True):
            if epoch == 0:
                assert drawn.setdefault(source, step) == step
        return randomness

    monkeypatch.setattr(VideoDiffusion, "draw", draw_and_note)
    train_video.main(["--base", str(settings), *words])
    assert len(drawn) == 5 and len(set(drawn.values())) > 1
    for source, step in drawn.items():
        text = explained(settings, tmp_path / "clip.html", capsys, *words, "--explain", source)
        assert f"noise timestep in the first epoch: {step} (0 is almost clean, 999 is noise)" in text
