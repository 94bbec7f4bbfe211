"""Single parts against direct formulas: timestep embedding, oneDNN linear."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cogvideox.transformer.cpu_linear import linear
from cogvideox.transformer.timestep import sinusoidal_embedding
from diffusers.models.embeddings import get_timestep_embedding


def test_timestep_embedding() -> None:
    timestep = torch.tensor([0, 1, 500, 999])
    ours = sinusoidal_embedding(timestep, 64)
    assert ours.dtype == torch.float32
    assert ours[1, 0].item() == pytest.approx(math.cos(1.0)), "the cosine half comes first"
    reference = get_timestep_embedding(timestep, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 16), (1, 1, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_linear(shape: tuple[int, ...], bias: bool) -> None:
    """Values and all gradients equal torch's, for contiguous and strided inputs."""
    torch.manual_seed(0)
    tokens = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2].requires_grad_()
    weight = torch.randn(24, 16, requires_grad=True)
    offset = torch.randn(24, requires_grad=True) if bias else None
    ours, theirs = linear(tokens, weight, offset), F.linear(tokens, weight, offset)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)
    wanted = [tokens, weight, *([offset] if offset is not None else [])]
    upstream = torch.randn(ours.shape)
    mine = torch.autograd.grad(ours, wanted, upstream)
    expected = torch.autograd.grad(theirs, wanted, upstream)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_onednn_linear_with_frozen_weight() -> None:
    tokens, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    linear(tokens, weight).sum().backward()
    torch.testing.assert_close(tokens.grad, weight.sum(0).expand(4, 8), rtol=0, atol=1e-5)


def test_other_dtypes_take_torch() -> None:
    tokens, weight = torch.randn(4, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    assert torch.equal(linear(tokens, weight), F.linear(tokens, weight))
