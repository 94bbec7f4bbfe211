"""fp32 matrix products on CPU through oneDNN.

torch's own fp32 linear takes MKL, which was a tenth to a fifth slower where we measured (docs/benchmarks.md).
oneDNN's operator is there in every x86 build of torch but knows no gradients.

Letters: s tokens, i input width, o output width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# A constant, because torch.compile can't look it up.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: tokens [..., i], weight [o, i], bias [o] -> [..., o]; by oneDNN where that is possible."""
    if takes_onednn(tokens):
        return _OneDnnLinear.apply(tokens, weight, bias)
    return F.linear(tokens, weight, bias)


def takes_onednn(tokens: Tensor) -> bool:
    """Whether products of these tokens go to oneDNN. Not under torch.compile, whose CPU backend has its own choice."""
    return (
        _HAS_ONEDNN
        and tokens.device.type == "cpu"
        and tokens.dtype == torch.float32
        and not torch.compiler.is_compiling()
    )


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `linear`, for code that makes its gradients itself."""
    return _product(tokens, weight, bias) if takes_onednn(tokens) else F.linear(tokens, weight, bias)


def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_weight_grad = ctx.needs_input_grad[1]
        ctx.save_for_backward(tokens if needs_weight_grad else None, weight)
        return _product(tokens, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        tokens, weight = ctx.saved_tensors
        grad_tokens = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_tokens = _product(grad, weight.t(), None)
        if ctx.needs_input_grad[1]:
            # Both operands would have to be transposed for oneDNN, which eats its advantage.
            grad_weight = grad.flatten(0, -2).t() @ tokens.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_tokens, grad_weight, grad_bias
