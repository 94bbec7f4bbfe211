"""Clipping and skipping before a step, against torch's own clipping."""

from __future__ import annotations

import pytest
import torch
from cogvideox.training.guard import Guard
from torch import Tensor, nn


def weights_after(steps: int, clip: float, *, guarded: bool, fused: bool, bad_step: int | None = None) -> list[Tensor]:
    """Of AdamW on gradients of norms about 3, which are clipped by the guard or by torch."""
    torch.manual_seed(0)
    net = nn.Linear(6, 5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=fused, foreach=False)

    def norm() -> Tensor:
        return torch.nn.utils.get_total_norm([each.grad for each in net.parameters()])

    if guarded:
        Guard(optimizer, norm, clip)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for each in net.parameters():
            each.grad = torch.randn(each.shape, generator=generator) / 2
        if step == bad_step:
            net.bias.grad[2] = float("inf")
        if not guarded and clip > 0:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return [each.detach() for each in net.parameters()]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [0.0, 0.1, 3.0, 100.0])
def test_it_clips_as_torch_does(clip: float, fused: bool) -> None:
    expected = weights_after(5, clip, guarded=False, fused=fused)
    for found, each in zip(weights_after(5, clip, guarded=True, fused=fused), expected, strict=True):
        # Divided here, multiplied by the reciprocal there: one rounding.
        torch.testing.assert_close(found, each, rtol=1e-6, atol=1e-7)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    before = weights_after(3, 0.1, guarded=True, fused=True)
    after = weights_after(4, 0.1, guarded=True, fused=True, bad_step=3)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
