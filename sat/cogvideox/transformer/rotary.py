"""The rotation of queries and keys, in the form that suits the device.

Letters: b batch, s tokens, n heads, h head width; a pair is the channels (2i, 2i + 1) of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotation_matrices(cos: Tensor, sin: Tensor) -> Tensor:
    """cos and sin of every pair, fp32 [s, h/2] -> what `rotate` takes, fp32 [2, s, 1, h/2, 2].

    [0] is what a pair's first channel contributes to (first, second): (cos, sin); [1] what the second one does:
    (-sin, cos).
    """
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)]).unsqueeze(2)


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of channels of [b, s, n, h] by rotation [2, s, 1, h/2, 2], in fp32, rounded once to heads' dtype.

    Attention takes the product of queries and keys, so the order of the channels is free as long as both have the same.
    Eager mode on CUDA uses that (see rotate_to_planes); elsewhere channels keep their places.
    """
    if torch.compiler.is_compiling():
        return _rotate_real(heads, rotation)
    return _rotate_complex(heads, rotation) if heads.device.type == "cpu" else rotate_to_planes(heads, rotation)


def rotate_to_planes(heads: Tensor, rotation: Tensor) -> Tensor:
    """As `rotate`, but with the pairs' first channels in the first half of h and the second ones behind them.

    Two kernels, each of which reads `heads` in its own dtype: the casts are done within them. That is 12 bytes for each
    bf16 channel, where casts and a complex product take 20. (Planes, because writing every other channel
    of a row would touch all of it.) On CPU torch makes the casts as copies, which takes ten times as long.
    """
    planes: Tensor = _RotateToPlanes.apply(heads, rotation)
    return planes


def _rotate_complex(heads: Tensor, rotation: Tensor) -> Tensor:
    """One complex product over all tokens, with the identity for text: nothing is kept for the backward pass."""
    pairs = heads.to(torch.promote_types(heads.dtype, rotation.dtype)).unflatten(-1, (-1, 2))
    turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation[0]))
    return turned.flatten(-2).to(heads.dtype)


def _rotate_real(heads: Tensor, rotation: Tensor) -> Tensor:
    """For torch.compile, which fuses all of it but can't fuse complex numbers."""
    first, second = heads.to(torch.promote_types(heads.dtype, rotation.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation[0].unbind(-1)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(heads.dtype)


class _RotateToPlanes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        first, second = heads.unflatten(-1, (-1, 2)).unsqueeze(-3).unbind(-1)  # [b, s, n, 1, h/2]
        of_first, of_second = rotation.transpose(-1, -2).unbind(0)  # [s, 1, 2, h/2]
        planes = heads.new_empty(*heads.shape[:-1], 2, heads.shape[-1] // 2)
        return torch.addcmul(first * of_first, second, of_second, out=planes).flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        first, second = grad.unflatten(-1, (2, -1)).unsqueeze(-1).unbind(-3)  # [b, s, n, h/2, 1]
        of_first, of_second = rotation.movedim(0, -1).unbind(-2)  # [s, 1, h/2, 2]
        pairs = grad.new_empty(*grad.shape[:-1], grad.shape[-1] // 2, 2)
        return torch.addcmul(first * of_first, second, of_second, out=pairs).flatten(-2), None
