"""From decoded frames to the size that the model is trained at.

Letters: t frames, h w pixels, c = 3 colours.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def fit_to_bucket(frames: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Resize to cover the size, keeping proportions, and cut out the centre.

    Bicubic with antialiasing. It stays in uint8 with the channels last in memory, where torch has a
    vectorised kernel: ten times as fast as float32, at the price of rounding between the horizontal and the
    vertical pass.

    Args:
        frames: uint8 [t, h, w, c].
        size: height and width of the result.

    Returns:
        uint8 [t, c, height, width], contiguous.
    """
    height, width = size
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # rotated frames are views
    covering = covering_size((pixels.shape[2], pixels.shape[3]), size)
    if covering != tuple(pixels.shape[2:]):
        pixels = F.interpolate(pixels, size=covering, mode="bicubic", antialias=True)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return pixels[:, :, top : top + height, left : left + width].contiguous()


def covering_size(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The smallest height and width with the source's proportions that cover `size`; one side matches
    exactly.
    """
    # Compared as products of integers: a ratio of floats could round one side to a pixel below.
    if source[0] * size[1] > source[1] * size[0]:
        return max(size[0], math.floor(source[0] * size[1] / source[1] + 0.5)), size[1]
    return size[0], max(size[1], math.floor(source[1] * size[0] / source[0] + 0.5))
