"""Small made-up scenes: a camera that moves over a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 24
Pictures = NDArray[np.uint8]  # [n, height, width, 3]


def picture(seed: int) -> Image.Image:
    """Coarse and fine shapes, as in photographs: 480 x 480 pixels."""
    rng = np.random.default_rng(seed)
    total = np.zeros((480, 480, 3))
    for cells, weight in ((4, 1.0), (8, 0.7), (16, 0.5), (40, 0.3)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += weight * np.asarray(noise.resize((480, 480), Image.Resampling.BICUBIC), np.float64)
    low, high = np.percentile(total, (2, 98))
    return Image.fromarray(np.clip((total - low) / (high - low) * 235 + 10, 0, 255).astype(np.uint8))


def scene(
    seed: int,
    count: int,
    *,
    speed: tuple[float, float] = (0.4, 0.1),
    zoom: float = 1.0,
    shake: float = 0.0,
    size: tuple[int, int] = (SIDE, SIDE),
) -> Pictures:
    """Frames of a moving camera.

    Args:
        speed: to the right and down, in pixels of SIDE per frame; the camera turns back at the picture's edge.
        zoom: by which each frame shows less than the one before.
        shake: standard deviation of the camera's place, in pixels of SIDE.
        size: height and width of the frames.
    """
    whole, rng = picture(seed), np.random.default_rng(seed)
    frames, step, view = [], 240 / SIDE, 240.0
    for number in range(count):
        place = rng.normal(0, shake * view / SIDE, 2) if shake else np.zeros(2)
        place += np.array(speed) * number * step + 60
        left, top = np.clip(240 - np.abs(np.mod(place, 480) - 240), 0, 480 - view)
        box = (left, top, left + view, top + view)
        frames.append(np.asarray(whole.resize(size[::-1], Image.Resampling.BOX, box=box)))
        view = max(view / zoom, 120.0)
    return np.stack(frames)


def crossed(first: Pictures, second: Pictures, length: int) -> tuple[Pictures, range]:
    """Two scenes of which the last and the first `length` frames are mixed, and where they are."""
    share = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    mixed = ((1 - share) * first[-length:] + share * second[:length]).round().astype(np.uint8)
    start = len(first) - length
    return np.concatenate([first[:-length], mixed, second[length:]]), range(start, start + length + 1)


def faded(first: Pictures, second: Pictures, length: int, colour: int, hold: int = 3) -> tuple[Pictures, range]:
    """Two scenes with a fade to a colour and back between them, and where it is."""
    share = (np.arange(1, length + 1) / length)[:, None, None, None]
    out = ((1 - share) * first[-length:] + share * colour).round().astype(np.uint8)
    back = (share * second[:length] + (1 - share) * colour).round().astype(np.uint8)
    flat = np.full((hold, *first.shape[1:]), colour, np.uint8)
    start = len(first) - length
    whole = np.concatenate([first[:-length], out, flat, back, second[length:]])
    return whole, range(start, start + 2 * length + hold)
