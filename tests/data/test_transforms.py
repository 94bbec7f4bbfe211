"""Resize and crop against PIL and against torch in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cogvideox.data.transforms import covering_size, fit_to_bucket
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


def noisy_frames(height: int, width: int, low: int = 0, high: int = 255) -> np.ndarray:
    """Two frames of noise over smooth colours, uint8 [2, height, width, 3] between low and high: edges that
    overshoot.
    """
    rng = np.random.default_rng(height * 1000 + width)
    smooth = np.linspace(0, 255, width)[None, None, :, None] * np.ones((2, height, 1, 3))
    return np.clip(smooth + rng.normal(0, 60, smooth.shape), low, high).astype(np.uint8)


SOURCES = [(90, 160), (64, 96), (120, 100), (61, 97), (32, 48), (33, 200)]


def cropped(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    top, left = (pixels.shape[-2] - size[0]) // 2, (pixels.shape[-1] - size[1]) // 2
    return pixels[..., top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("source", SOURCES)
def test_against_float(source: tuple[int, int]) -> None:
    """uint8 rounds after each of two passes: 0.5 from the second, 0.5 times the gain of the second kernel
    (the sum of its absolute weights, below 1.3 for bicubic with a = -0.5) from the first; and weights rounded
    to about 2^-11 times 255 make up to 0.2 more: below 1.5. Grey values keep away from 0 and 255, where uint8
    also clips between the passes."""
    frames = noisy_frames(*source, low=50, high=205)
    result = fit_to_bucket(frames, (48, 72))
    assert result.shape == (2, 3, 48, 72) and result.dtype == torch.uint8 and result.is_contiguous()
    exact = F.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2).float(),
        size=covering_size(source, (48, 72)),
        mode="bicubic",
        antialias=True,
    )
    assert (result.float() - cropped(exact, (48, 72))).abs().max() <= 1.5


@pytest.mark.parametrize("source", SOURCES)
def test_against_pil(source: tuple[int, int]) -> None:
    """PIL rounds and clips in the same places."""
    frames = noisy_frames(*source)
    covering = covering_size(source, (48, 72))
    image = Image.fromarray(frames[0]).resize((covering[1], covering[0]), Image.Resampling.BICUBIC)
    expected = cropped(torch.from_numpy(np.array(image)).permute(2, 0, 1), (48, 72))
    assert (fit_to_bucket(frames, (48, 72))[0].int() - expected.int()).abs().max() <= 1


def test_same_size_is_untouched_and_crop_is_central() -> None:
    frames = noisy_frames(48, 72)
    assert torch.equal(fit_to_bucket(frames, (48, 72)), torch.from_numpy(frames).permute(0, 3, 1, 2))
    wide = noisy_frames(48, 82)
    assert torch.equal(fit_to_bucket(wide, (48, 72)), torch.from_numpy(wide[:, :, 5:77]).permute(0, 3, 1, 2))


def test_turned_frames_with_negative_strides() -> None:
    frames = np.rot90(noisy_frames(60, 40), k=1, axes=(1, 2))
    assert torch.equal(fit_to_bucket(frames, (20, 30)), fit_to_bucket(np.ascontiguousarray(frames), (20, 30)))


@given(st.tuples(*[st.integers(1, 5000)] * 2), st.tuples(*[st.integers(1, 2000)] * 2))
def test_covering_covers_and_one_side_fits(source: tuple[int, int], size: tuple[int, int]) -> None:
    height, width = covering_size(source, size)
    assert height >= size[0] and width >= size[1]
    assert height == size[0] or width == size[1]
    # Proportions are kept to within half a pixel.
    assert abs(height * source[1] - width * source[0]) <= 0.5 * max(source) + 1e-6 or min(height, width) == 1
