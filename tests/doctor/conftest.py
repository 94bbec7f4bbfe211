"""A small data set with something wrong of every kind, and the command that looks at it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import check_dataset
import numpy as np
import pytest
import tiny
from data.clip_files import write_frames

Check = Callable[..., Path]
SIZE = (32, 48)  # that of the tiny family


def write_clip(
    file: Path,
    caption: str,
    seed: int,
    kind: str = "moves",
    frames: int = 17,
    size: tuple[int, int] = SIZE,
    crf: int = 18,
) -> Path:
    """A wall of its own colours before which a block moves; or nothing moves, or all is black."""
    height, width = size
    cells = np.random.default_rng(seed).integers(0, 255, (4, 6, 3))
    wall = np.kron(cells, np.ones((height // 4, width // 6, 1))).astype(np.uint8)

    def pictures() -> Any:
        for number in range(frames):
            picture = wall * (kind != "black")
            if kind == "moves":
                left = number * (width - width // 4) // frames
                picture = picture.copy()
                picture[height // 4 : -height // 4, left : left + width // 4] = 255
            yield av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24").reformat(format="yuv420p")

    write_frames(file, pictures(), options={"crf": str(crf)})
    file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(to train on, held out)."""
    folder = tmp_path_factory.mktemp("doctor")
    train, held_out = folder / "train", folder / "held_out"
    train.mkdir()
    held_out.mkdir()
    for number in range(6):
        write_clip(train / f"wall_{number}.mp4", f"a block moves before wall {number}", number)
    write_clip(train / "tall.mp4", "upright </script><b>bold", 10, size=(48, 30))
    write_clip(train / "again.mp4", "the first wall, encoded again", 0, size=(64, 96), crf=30)
    write_clip(train / "dark.mp4", "one caption", 11, "black")
    write_clip(train / "still.mp4", "one caption", 12, "still")
    write_clip(train / "short.mp4", "too short", 13, frames=4)
    write_clip(train / "wordy.mp4", "word " * 30, 14)
    write_clip(train / "silent.mp4", "", 15)
    (train / "cut.mp4").write_bytes((train / "wall_1.mp4").read_bytes()[:300])
    (train / "cut.txt").write_text("cut short")
    write_clip(held_out / "new.mp4", "a new wall", 20)
    for name in ("wall_2.mp4", "wall_2.txt"):
        shutil.copy(train / name, held_out / name)
    for name in ("wall_3.mp4", "wall_3.txt"):
        os.link(train / name, held_out / name)
    return train, held_out


@pytest.fixture(scope="session")
def settings(family_of: tiny.FamilyOf, clips: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of the tiny family for these clips, in whose cache folder everything is remembered."""
    folder = tmp_path_factory.mktemp("settings")
    content = tiny.train_settings(family_of("2b"), folder / "runs")
    content["args"] |= {"train_data": [str(clips[0])], "valid_data": [str(clips[1])], "cache": str(folder / "cache")}
    content["data"] |= {"max_failed_share": 0.5}
    return tiny.write_yaml(folder / "lora.yaml", content)


@pytest.fixture
def check(settings: Path, tmp_path: Path) -> Check:
    """Run the command; gives the page, beside which is the JSON."""

    def check(*words: str) -> Path:
        page = tmp_path / "report.html"
        check_dataset.main(
            ["--base", str(settings), *words, "--output", str(page), "--json", str(page.with_suffix(".json"))]
        )
        return page

    return check


def facts_beside(page: Path) -> dict[str, Any]:
    """What the JSON of a page holds."""
    content: dict[str, Any] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    return content
