"""The maps of a decoder's SpatialNorms on a GPU: one product for each norm, in float32.

Such a norm is ((x - mean) rstd weight + bias) scale(z) + shift(z), where scale and shift are pointwise convolutions of
the latent z. With a row of ones below z they are matrices, so all of it is x (A z) + B z. A and B are made from the
moments of x, and from matrices that are made for all norms at once.

Letters: b batch, z latent channels, f y x latent frames, height, width; c channels of the features; k = z + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cogvideox.vae.norm_silu import NormMaps, group_moments


@dataclass(frozen=True)
class SpatialWeights:
    """The parts of one SpatialNorm: its GroupNorm, and the convolutions that make scale and shift."""

    norm: nn.GroupNorm
    scale: nn.Conv3d
    shift: nn.Conv3d


class LatentMaps:
    """For one chunk of latents, b z f y x, without autograd."""

    def __init__(self, parts: Sequence[SpatialWeights], latent: Tensor) -> None:
        exact = torch.promote_types(latent.dtype, torch.float32)
        self._size = latent.shape[2:]
        with_ones = F.pad(latent.to(exact), (0, 0, 0, 0, 0, 0, 0, 1), value=1.0)
        self._points = with_ones.permute(0, 2, 3, 4, 1).flatten(1, 3)  # b fyx k
        convs = [part.scale for part in parts] + [part.shift for part in parts]
        weights = torch.cat([conv.weight.flatten(1) for conv in convs])
        biases = torch.cat([conv.bias.detach() for conv in convs if conv.bias is not None])
        matrices = torch.cat((weights, biases[:, None]), dim=1).to(exact)
        own: list[Tensor] = [part.norm.weight for part in parts]
        own += [part.norm.bias for part in parts]
        (scale, shift), (weight, bias) = matrices.chunk(2), torch.cat(own)[:, None].chunk(2)
        widths = [part.norm.num_channels for part in parts]
        slopes, offsets = weight * scale, torch.addcmul(shift, bias, scale)
        pairs = zip(slopes.split(widths), offsets.split(widths), strict=True)
        self._matrices = dict(zip((part.norm for part in parts), pairs, strict=True))

    def maps(self, norm: nn.GroupNorm, pieces: Sequence[Tensor], *, lone_first_frame: bool) -> NormMaps:
        """Of the SpatialNorm that this norm is part of, for all frames of the pieces, b c t h w each."""
        matrices = group_moments(pieces, norm.num_groups, norm.eps).affine(*self._matrices[norm])
        both = torch.bmm(self._points, matrices.flatten(1, 2).transpose(1, 2))  # b fyx 2c
        scale, shift = both.unflatten(1, self._size).movedim(4, 1).chunk(2, dim=1)
        return NormMaps(scale, shift, sum(piece.shape[2] for piece in pieces), lone_first_frame)
