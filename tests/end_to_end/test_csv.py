"""Videos of two aspect ratios in a CSV, from the first look to a sampled video, with the commands of the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import tiny

ROOT = Path(__file__).resolve().parents[2]
MODEL, DATA = "configs/demo_lora.yaml", "configs/demo_sft.yaml"
POSITIONS = "model.network_config.params.modules.pos_embed_config.params.resize=interpolate"
# (name, height, width); upright ones take a quarter turn of the demo's size.
CLIPS = [(f"wide{number}", 64, 96) for number in range(6)] + [(f"upright{number}", 96, 64) for number in range(4)]


def run(*words: object) -> str:
    """One command of this repository, started as a user starts it."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def write_csv(folder: Path) -> Path:
    """Clips, and the table of them; a caption has a comma, quotes and another language."""
    rows = ["text,video_path"]
    generator = np.random.default_rng(0)
    for name, height, width in CLIPS:
        picture = generator.integers(0, 255, (1, height // 8, width // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        tiny.write_clip(folder / f"{name}.mp4", np.concatenate([np.roll(picture, 2 * n, 2) for n in range(20)]))
        rows.append(f'"a ""{name}"" zorp, वह चलता है",{name}.mp4')
    table = folder / "clips.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


@pytest.mark.slow
@pytest.mark.timeout(900)  # six programs, one after the other
def test_from_a_table_to_a_video(tmp_path: Path) -> None:
    table, runs, cache = write_csv(tmp_path), tmp_path / "runs", tmp_path / "cache"
    before = table.read_bytes()
    common = [
        *("--base", MODEL, DATA, f"args.train_data=[{table}]", "args.valid_data=[]", "args.eval_split=0.2"),
        *("data.buckets=[[17,64,96],[17,96,64]]", f"args.save={runs}", "args.train_iters=4", "args.eval_interval=4"),
        "args.warmup_steps=0",
        *("deepspeed.train_micro_batch_size_per_gpu=2", "args.eval_prompts=[a red zorp grows]", "args.sample_steps=2"),
        POSITIONS,
    ]
    page, figures = tmp_path / "page.html", tmp_path / "page.json"
    run("tools/check_dataset.py", *common, "--output", page, "--json", figures)
    found = json.loads(figures.read_text())
    assert "upright3" in page.read_text(encoding="utf-8")
    (part,) = found["parts"]
    assert {each["bucket"]: each["samples"] for each in part["buckets"]} == {"17x64x96": 6, "17x96x64": 4}

    said = run("sat/cache_dataset.py", *common, f"args.cache={cache}")
    assert " 0 failed" in said and len(list((cache / "latents").rglob("*.safetensors"))) == len(CLIPS)
    run("sat/train_video.py", *common, f"args.cache={cache}")
    (folder,) = runs.iterdir()
    lines = tiny.read_lines(folder)
    assert [line["step"] for line in lines if "train_loss" in line][-1] == 4
    assert len([line for line in lines if "valid_loss" in line]) == 2

    videos = tmp_path / "videos"
    size = (POSITIONS, "args.sampling_image_size=[96,64]", "args.num_steps=3", f"args.output_dir={videos}")
    run("sat/sample_video.py", "--base", MODEL, "configs/demo_inference.yaml", f"args.load={folder}", *size)
    written = sorted(videos.rglob("*.mp4"))
    assert len(written) == 4
    with av.open(str(written[0])) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height) == (64, 96)
    assert table.read_bytes() == before
