"""The same convolutions with fewer multiplications, for CPUs, where arithmetic is what takes the time.

Exact identities in real arithmetic; in float32 they round differently in the last digits. They are used in float32 and
float64 only, because sums of weights lose digits in half precision, and only without autograd.

Letters: b batch, c channels, t frames, h w height and width, k frames of context (2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Below so many output positions, combining the weights costs more than it saves (measured with 256 and 512 channels).
MIN_POSITIONS = 1000
SLAB_ELEMENTS = 2**21  # of input per product: small enough for the memory allocator to reuse blocks, 8 MiB in float32


def saves_time(x: Tensor) -> bool:
    """Whether the functions below suit a convolution with an output of the batch, frames and size of x, b c t h w."""
    positions = x.numel() // x.shape[1]
    suits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return suits and positions >= MIN_POSITIONS and not torch.is_grad_enabled()


def causal_conv3d(padded: Tensor, weight: Tensor, bias: Tensor | None, *, repeats_first: bool) -> Tensor:
    """3x3x3 convolution, zero padding in space, by Winograd's F(2, 3) in time: 4 products for 2 frames instead of 6.

    padded: b c t+2 h w, the two frames of context in front; repeats_first: they are copies of the third.
    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308), section 4.1.
    """
    b, _, frames, h, w = padded.shape
    shape = (b, weight.shape[0], frames - 2, h, w)
    out = torch.empty(shape, dtype=padded.dtype, memory_format=torch.channels_last_3d)
    x, y = padded.transpose(1, 2), out.transpose(1, 2)
    odd_one = y.shape[1] % 2
    if odd_one and repeats_first:
        y[:, 0] = F.conv2d(x[:, 2], weight.sum(2), bias, padding=1)
    elif odd_one:
        out[:, :, :1] = F.conv3d(padded[:, :, :3], weight, bias, padding=(0, 1, 1))
    pairs = max(1, SLAB_ELEMENTS // x[:, 0].numel())
    for start in range(odd_one, y.shape[1], 2 * pairs):
        end = min(start + 2 * pairs, y.shape[1])
        _frame_pairs(x[:, start : end + 2], y[:, start:end], weight, bias)
    return out


def _frame_pairs(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """x b 2n+2 c h w -> y b 2n c h w, written in place. One product at a time, so that little memory is in use."""
    x0, x1, x2, x3 = x[:, :-2:2], x[:, 1:-2:2], x[:, 2::2], x[:, 3::2]
    even, odd = y[:, ::2], y[:, 1::2]
    first, middle, last = weight.unbind(2)
    outer = first + last
    mixed = x0 - x2
    even.copy_(_conv_frames(mixed, first))
    product = _conv_frames(torch.add(x1, x2, out=mixed), (outer + middle).mul_(0.5), bias)
    even.add_(product)
    odd.copy_(product)
    product = _conv_frames(torch.sub(x2, x1, out=mixed), (outer - middle).mul_(0.5))
    even.add_(product)
    odd.sub_(product)
    odd.sub_(_conv_frames(torch.sub(x1, x3, out=mixed), last))


def _conv_frames(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same 3x3 convolution on every frame: b n c h w -> b n c' h w."""
    return F.conv2d(x.flatten(0, 1), weight, bias, padding=1).unflatten(0, x.shape[:2])


def upsampled_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest enlargement by 2, then a 3x3 convolution with zero padding: b c h w -> b c' 2h 2w.

    Of three enlarged neighbours two are always equal. So each of the four (row, column) parities of the output is a 2x2
    convolution of x, with the weights of equal neighbours added: 16 products for four pixels instead of 36.
    """
    b, _, h, w = x.shape
    kernels = torch.cat([_merge(_merge(weight, 2, row), 3, column) for row in (0, 1) for column in (0, 1)])
    biases = None if bias is None else bias.repeat(4)
    shape = (b, weight.shape[0], 2 * h, 2 * w)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    slab = max(1, SLAB_ELEMENTS // x[0].numel())
    for start in range(0, b, slab):
        merged = F.conv2d(x[start : start + slab], kernels, biases, padding=1).chunk(4, dim=1)
        for parity, part in enumerate(merged):
            row, column = divmod(parity, 2)
            part = part[:, :, row : row + h, column : column + w]
            out[start : start + slab, :, row::2, column::2] = part
    return out


def _merge(weight: Tensor, dim: int, parity: int) -> Tensor:
    """Three taps to two: an even output sees (before, self + after), an odd one (before + self, after)."""
    before, own, after = weight.unbind(dim)
    return torch.stack((before, own + after) if parity == 0 else (before + own, after), dim)
