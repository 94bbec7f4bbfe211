"""Previews and the configuration in TensorBoard and Weights & Biases."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from cogvideox.sampling.write_video import write_png, write_video
from cogvideox.training.run_log import RunLog
from cogvideox.training.run_media import animation
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIGURATION = "args:\n  seed: 1\ndata:\n  fps: 8\n"


@pytest.fixture
def previews(tmp_path: Path) -> Path:
    """A red video that turns blue, 9 frames at 8 fps, wider than an animation, and a green picture."""
    folder = tmp_path / "samples"
    video = torch.zeros(9, 3, 200, 400, dtype=torch.uint8)
    video[:5, 0], video[5:, 2] = 255, 255
    write_video(folder / "0_a_ship.mp4", video, 8)
    write_png(folder / "1_a_cup.png", torch.tensor([0, 255, 0], dtype=torch.uint8).expand(32, 48, 3))
    return folder


def test_an_animation_has_the_frames_and_the_time_of_the_video(previews: Path) -> None:
    data, size = animation(previews / "0_a_ship.mp4")
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "GIF" and picture.size == size == (360, 180)
        total = 0
        for index in range(picture.n_frames):  # equal frames in a row are one, for longer
            picture.seek(index)
            total += picture.info["duration"]
            red, green, blue = picture.convert("RGB").getpixel((100, 100))
            assert abs(max(red, blue) - 255) < 8 and green < 8 and (red > blue) == (index == 0)
        assert total == pytest.approx(9 * 125, abs=9 * 5)  # GIF counts hundredths of a second


def test_tensorboard(tmp_path: Path, previews: Path) -> None:
    with RunLog(tmp_path, 1, 1, configuration=CONFIGURATION) as log:
        log.previews(4, previews)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["images"] == ["Previews/0_a_ship", "Previews/1_a_cup"]
    (ship,) = board.Images("Previews/0_a_ship")
    assert (ship.step, ship.width, ship.height) == (4, 360, 180) and ship.encoded_image_string.startswith(b"GIF8")
    (text,) = board.Tensors("configuration/text_summary")
    (shown,) = text.tensor_proto.string_val
    assert shown.decode() == "\n".join(f"    {line}" for line in CONFIGURATION.splitlines())


def test_weights_and_biases(tmp_path: Path, previews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    sent: dict[str, Any] = {}
    with RunLog(tmp_path, 1, 1, wandb_project="test", configuration=CONFIGURATION) as log:
        assert wandb.run is not None
        assert dict(wandb.run.config) == {"args": {"seed": 1}, "data": {"fps": 8}}
        monkeypatch.setattr(type(wandb.run), "log", lambda _, figures, step: sent.update({"step": step, **figures}))
        log.previews(4, previews)
    assert isinstance(sent["Previews/0_a_ship"], wandb.Video) and isinstance(sent["Previews/1_a_cup"], wandb.Image)
    assert sent["step"] == 4


@pytest.mark.slow
def test_weights_and_biases_without_login_records_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with RunLog(tmp_path, 1, 1, wandb_project="test", configuration=CONFIGURATION) as log:
        log.validation(1, 0.5)
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    (line,) = [record.getMessage() for record in caplog.records if "Weights & Biases" in record.getMessage()]
    assert "not logged in" in line and f"wandb sync {tmp_path}/wandb/offline-run-*" in line
