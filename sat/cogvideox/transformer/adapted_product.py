"""A linear layer and its adapters in one differentiable function: products are added while they are written.

torch's own operators would write each adapter's product, read it again to scale and add it, and do the same to the
gradients. Here scale and sum are part of the matrix products, and the scale meets rank-wide matrices only.

Letters: b batch, s tokens, i input width, o output width of a part, r rank, k parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cogvideox.transformer.cpu_linear import product


def adapted_product(
    tokens: Tensor,
    dropped: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    ups: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, ...]:
    """For each part: tokens @ weight.T + bias + scale * (inputs @ down.T) @ up.T.

    Args:
        tokens: [b, s, i].
        dropped: [b, s, i], the adapters' inputs where they differ from `tokens` (dropout); None where they don't.
        weight: [k o, i]; bias: [k o] or None.
        down: [k r, i]; ups: k of [o, r].

    Returns:
        k tensors [b, s, o], each contiguous.
    """
    inputs = None if dropped is None else dropped.flatten(0, 1)
    parts = _AdaptedProduct.apply(tokens.flatten(0, 1), inputs, weight, bias, down, scale, *ups)
    return tuple(part.unflatten(0, tokens.shape[:2]) for part in parts)


class _AdaptedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        scale: float,
        *ups: Tensor,
    ) -> tuple[Tensor, ...]:
        k = len(ups)
        low = product(tokens if dropped is None else dropped, down)
        biases = [None] * k if bias is None else bias.chunk(k)
        ctx.scale = scale
        ctx.save_for_backward(
            tokens if dropped is None or ctx.needs_input_grad[2] else None, dropped, weight, down, low, *ups
        )
        return tuple(
            product(tokens, each, its_bias).addmm_(narrow, up.t(), alpha=scale)
            for each, its_bias, narrow, up in zip(weight.chunk(k), biases, low.chunk(k, dim=1), ups, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, dropped, weight, down, low, *ups = ctx.saved_tensors
        needs_tokens, needs_dropped, needs_weight, needs_bias, needs_down, _, *needs_ups = ctx.needs_input_grad
        lows = low.chunk(len(ups), dim=1)
        grad_low = torch.empty_like(low)
        for grad, up, narrow in zip(grads, ups, grad_low.chunk(len(ups), dim=1), strict=True):
            narrow.addmm_(grad, up, beta=0, alpha=ctx.scale)
        grad_tokens = grad_dropped = grad_weight = grad_bias = grad_down = None
        if needs_tokens:
            grad_tokens = _sum_of_products(grads, weight.chunk(len(ups)))
            if dropped is None:
                grad_tokens.addmm_(grad_low, down)
        if needs_dropped:
            grad_dropped = product(grad_low, down.t())
        if needs_weight:
            grad_weight = torch.cat([grad.t() @ tokens for grad in grads])
        if needs_bias:
            grad_bias = torch.cat([grad.sum(0) for grad in grads])
        if needs_down:
            grad_down = grad_low.t() @ (tokens if dropped is None else dropped)
        grad_ups = (
            (grad.t() @ each).mul_(ctx.scale) if needed else None
            for grad, each, needed in zip(grads, lows, needs_ups, strict=True)
        )
        return grad_tokens, grad_dropped, grad_weight, grad_bias, grad_down, None, *grad_ups


def _sum_of_products(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The sum of grad [s, o] @ weight [o, i]."""
    total = product(grads[0], weights[0].t())
    for grad, weight in zip(grads[1:], weights[1:], strict=True):
        total.addmm_(grad, weight)
    return total
