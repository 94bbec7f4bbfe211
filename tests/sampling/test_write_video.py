"""Files: right frames, right speed, right colours, and nothing half-written."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from cogvideox.errors import DataError, ShapeError
from cogvideox.sampling.write_video import to_uint8, write_latent, write_png, write_video
from safetensors import safe_open
from torch import Tensor


def clip(frames: int = 9, height: int = 32, width: int = 48) -> Tensor:
    """Smooth colours that change over time: float [t, 3, h, w] in [-1, 1]."""
    t = torch.linspace(-1, 1, frames)[:, None, None].expand(-1, height, width)
    y = torch.linspace(-1, 1, height)[None, :, None].expand(frames, -1, width)
    x = torch.linspace(-1, 1, width)[None, None, :].expand(frames, height, -1)
    return torch.stack([t, y, x], dim=1)


def read(path: Path) -> tuple[Tensor, Fraction, str]:
    """uint8 [t, 3, h, w], frames per second, pixel format."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264" and stream.average_rate is not None
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), stream.average_rate, stream.pix_fmt


@pytest.mark.parametrize("fps", [8, 16.0, 23.976])
def test_frames_speed_and_colours(tmp_path: Path, fps: float) -> None:
    video = clip()
    frames, rate, pixels = read(write_video(tmp_path / "new" / "clip.mp4", video, fps))
    assert frames.shape == (9, 3, 32, 48) and pixels == "yuv420p"
    assert float(rate) == pytest.approx(fps, abs=1e-3)
    difference = (frames.float() - to_uint8(video).float()).abs()
    assert difference.mean() < 2.5 and difference.max() < 20  # decoding alone rounds by one level
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.mp4"]


def test_pieces_give_the_same_video_as_the_whole(tmp_path: Path) -> None:
    """Frames, not bytes: x264's choices differ from run to run at this size, for the same pictures."""
    video = clip()
    whole, *_ = read(write_video(tmp_path / "whole.mp4", video, 8))
    pieces, *_ = read(write_video(tmp_path / "pieces.mp4", iter([video[:1], video[1:5], video[5:]]), 8))
    assert whole.shape == pieces.shape
    assert (whole.float() - pieces.float()).abs().mean() < 1.0


def test_pixels_are_rounded_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8((every.float() - 127.5) / 127.5), every)
    assert to_uint8(every) is every


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"31 x 48 .* can't be written as H.264: both must be even"):
        write_video(tmp_path / "odd.mp4", clip(height=31), 8)
    assert not list(tmp_path.iterdir())


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="needs at least one frame"):
        write_video(tmp_path / "none.mp4", iter([]), 8)
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", clip(), 8)
    before = path.read_bytes()

    def broken() -> Iterator[Tensor]:
        yield clip()[:2]
        raise RuntimeError("decoder died")

    with pytest.raises(RuntimeError, match="decoder died"):
        write_video(path, broken(), 8)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]


def test_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"clip.mp4 can't be written"):
        write_video(tmp_path / "file" / "clip.mp4", clip(), 8)


def test_latents_come_back(tmp_path: Path) -> None:
    latent = torch.randn(3, 16, 4, 6)
    with safe_open(str(write_latent(tmp_path / "latent.safetensors", latent)), "pt") as file:
        assert torch.equal(file.get_tensor("latent"), latent)
        assert file.metadata() == {"axes": "frames channels height width", "scaled": "false"}


def test_a_picture_comes_back(tmp_path: Path) -> None:
    frame = to_uint8(clip(frames=1))[0].permute(1, 2, 0)
    with av.open(str(write_png(tmp_path / "sheet.png", frame))) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_array_equal(picture, frame.numpy())
