from __future__ import annotations

import pytest
import torch
from cogvideox.vae import fewer_products
from torch.nn import functional as F


def padded_clip(frames: int, dtype: torch.dtype, repeats_first: bool) -> torch.Tensor:
    x = torch.randn(2, 5, frames + 2, 6, 7, dtype=dtype)
    if repeats_first:
        x[:, :, :2] = x[:, :, 2:3]
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("repeats_first", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8])
@torch.no_grad()
def test_causal_conv3d_is_the_plain_convolution(frames: int, repeats_first: bool) -> None:
    x = padded_clip(frames, torch.float64, repeats_first)
    weight, bias = torch.randn(4, 5, 3, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    result = fewer_products.causal_conv3d(x, weight, bias, repeats_first=repeats_first)
    torch.testing.assert_close(result, F.conv3d(x, weight, bias, padding=(0, 1, 1)), rtol=0, atol=1e-12)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = padded_clip(9, torch.float64, True), torch.randn(4, 5, 3, 3, 3, dtype=torch.float64)
    images, kernel = torch.randn(3, 5, 4, 6, dtype=torch.float64), torch.randn(7, 5, 3, 3, dtype=torch.float64)
    whole = fewer_products.causal_conv3d(x, weight, None, repeats_first=True)
    enlarged = fewer_products.upsampled_conv2d(images, kernel, None)
    monkeypatch.setattr(fewer_products, "SLAB_ELEMENTS", 1)
    torch.testing.assert_close(fewer_products.causal_conv3d(x, weight, None, repeats_first=True), whole)
    torch.testing.assert_close(fewer_products.upsampled_conv2d(images, kernel, None), enlarged)


@torch.no_grad()
def test_float32_loses_no_more_than_the_plain_convolution() -> None:
    x = padded_clip(8, torch.float64, False)
    weight = torch.randn(4, 5, 3, 3, 3, dtype=torch.float64)
    exact = F.conv3d(x, weight, padding=(0, 1, 1))
    result = fewer_products.causal_conv3d(x.float(), weight.float(), None, repeats_first=False)
    assert (result - exact).abs().max() < 2e-6 * exact.std()


@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_upsampled_conv2d_is_enlargement_then_convolution(with_bias: bool) -> None:
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64)
    bias = torch.randn(7, dtype=torch.float64) if with_bias else None
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    torch.testing.assert_close(fewer_products.upsampled_conv2d(x, weight, bias), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "size", "grad", "expected"),
    [
        (torch.float32, 40, False, True),
        (torch.float64, 40, False, True),
        (torch.bfloat16, 40, False, False),  # sums of weights would lose digits
        (torch.float32, 8, False, False),  # too small to pay
        (torch.float32, 40, True, False),  # works in place
    ],
)
def test_used_only_where_it_is_exact_and_pays(dtype: torch.dtype, size: int, grad: bool, expected: bool) -> None:
    with torch.set_grad_enabled(grad):
        assert fewer_products.saves_time(torch.zeros(1, 4, 2, size, size, dtype=dtype)) is expected
