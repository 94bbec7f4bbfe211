"""Videos and latents to files. Each file appears under its name only when it is complete.

Letters: t frames, c channels (3, red green blue), h w pixels; f latent frames, y x latent height and width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.video.reformatter import ColorRange, Colorspace
from safetensors.torch import save_file
from torch import Tensor

from cogvideox.errors import DataError, ShapeError

QUALITY = "12"  # x264's constant rate factor: no visible loss


def to_uint8(video: Tensor) -> Tensor:
    """Float video in about [-1, 1], any shape -> uint8; uint8 passes through."""
    if video.dtype == torch.uint8:
        return video
    return ((video.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def write_video(path: str | Path, video: Tensor | Iterable[Tensor], fps: float) -> Path:
    """Write an mp4 (H.264, yuv420p).

    video: float in about [-1, 1] or uint8, [t, 3, h, w], or an iterable of such pieces in order, so that a
    long video never has to be in memory. fps: frames per second, rounded to a thousandth.
    Raises: ShapeError for an odd height or width; DataError when the file can't be written.
    """
    pieces = [video] if isinstance(video, Tensor) else video
    path = Path(path)
    with _complete_file(path) as partial:
        count = _encode(partial, pieces, fps)
        if count == 0:
            raise ShapeError(f"{path}: a video needs at least one frame")
    return path


def _encode(file: Path, pieces: Iterable[Tensor], fps: float) -> int:
    count = 0
    with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = None
        for piece in pieces:
            frames = to_uint8(piece).permute(0, 2, 3, 1).contiguous().cpu().numpy()
            if stream is None:
                stream = _open_stream(container, frames.shape[1], frames.shape[2], fps)
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(_to_yuv(picture)))
                count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count


def _open_stream(container: Any, height: int, width: int, fps: float) -> Any:
    if height % 2 or width % 2:
        raise ShapeError(f"a video of {height} x {width} (height x width) can't be written as H.264: both must be even")
    stream = container.add_stream("libx264", rate=Fraction(round(fps * 1000), 1000))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.options = {"crf": QUALITY, "preset": "medium"}
    # Said explicitly: players guess another matrix for large frames, and colours would shift.
    stream.codec_context.colorspace = Colorspace.SMPTE170M
    stream.codec_context.color_range = ColorRange.MPEG
    return stream


def _to_yuv(picture: av.VideoFrame) -> av.VideoFrame:
    return picture.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.SMPTE170M,
        dst_color_range=ColorRange.MPEG,
        interpolation="BICUBIC",
    )


def write_latent(path: str | Path, latent: Tensor) -> Path:
    """Write a latent [f, c, y, x], without scale factor, as safetensors with the one name `latent`.

    Raises: DataError when the file can't be written.
    """
    path = Path(path)
    content = {"latent": latent.detach().float().cpu().contiguous()}
    with _complete_file(path) as partial:
        save_file(content, str(partial), metadata={"axes": "frames channels height width", "scaled": "false"})
    return path


def write_png(path: str | Path, picture: Tensor) -> Path:
    """Write uint8 [h, w, 3] as PNG. Raises: DataError when the file can't be written."""
    path = Path(path)
    codec: Any = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt = picture.shape[0], picture.shape[1], "rgb24"
    codec.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
    data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    with _complete_file(path) as partial:
        partial.write_bytes(data)
    return path


@contextmanager
def _complete_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block succeeds, and nothing otherwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, av.FFmpegError) as error:
        raise DataError(f"{path} can't be written: {error}") from error
