"""The pieces of encoder and decoder: normalisation, residual block, resampling.

Letters: b batch, c channels, t frames at this level, h w height and width at this level; f y x latent frames, height,
width; z latent channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cogvideox.vae.causal_conv import CausalConv3d, CausalState

GROUP_NORM_EPS = 1e-6


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """GroupNorm with the epsilon of the released weights."""
    return nn.GroupNorm(num_groups, channels, eps=GROUP_NORM_EPS)


class SpatialNorm(nn.Module):
    """GroupNorm whose result is scaled and shifted by maps computed from the latent.

    Keys: `norm_layer.*`, `conv_y.conv.*` (scale), `conv_b.conv.*` (shift).
    The published layer enlarges the latent to the size of the features and then applies the two 1x1x1 convolutions.
    Nearest enlargement commutes with a pointwise convolution, so here the maps stay at latent size and are broadcast.
    Source: MoVQ (arXiv 2209.09002), section 3.1, with the first frame enlarged apart.
    """

    def __init__(self, channels: int, latent_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm_layer = group_norm(channels, num_groups)
        self.conv_y = CausalConv3d(latent_channels, channels, kernel_size=1)
        self.conv_b = CausalConv3d(latent_channels, channels, kernel_size=1)

    def forward(self, x: Tensor, latent: Tensor, state: CausalState) -> Tensor:
        """x b c t h w, latent b z f y x -> b c t h w. t is f or grows from it by whole factors, the lone frame apart."""
        x = self.norm_layer(x)
        scale, shift = self.conv_y(latent, state), self.conv_b(latent, state)
        if not state.lone_first_frame or x.shape[2] == latent.shape[2]:
            return _modulate(x, scale, shift)
        parts = [_modulate(x[:, :, :1], scale[:, :, :1], shift[:, :, :1])]
        if x.shape[2] > 1:
            parts.append(_modulate(x[:, :, 1:], scale[:, :, 1:], shift[:, :, 1:]))
        return torch.cat(parts, dim=2) if torch.is_grad_enabled() else x


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift with the maps repeated over whole blocks of x; in place when autograd is off."""
    for dim in (4, 3, 2):
        size = scale.shape[dim]
        scale, shift = scale.unsqueeze(dim + 1), shift.unsqueeze(dim + 1)
        x = x.unflatten(dim, (size, -1))
    if torch.is_grad_enabled():
        x = torch.addcmul(shift, x, scale)
    else:
        torch.addcmul(shift, x, scale, out=x)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class ResnetBlock(nn.Module):
    """Norm, SiLU, causal convolution, twice, plus the input (through a pointwise convolution when widths differ).

    Keys: `norm1`, `conv1.conv`, `norm2`, `conv2.conv`, `nin_shortcut`. With `latent_channels` the norms are SpatialNorms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_groups: int, latent_channels: int | None = None
    ) -> None:
        super().__init__()
        norms = [
            group_norm(width, num_groups)
            if latent_channels is None
            else SpatialNorm(width, latent_channels, num_groups)
            for width in (in_channels, out_channels)
        ]
        self.norm1, self.norm2 = norms
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv3d(in_channels, out_channels, 1)
        self.changes_width = in_channels != out_channels

    def forward(self, x: Tensor, state: CausalState, latent: Tensor | None = None) -> Tensor:
        """b c_in t h w -> b c_out t h w; latent b z f y x for SpatialNorm."""
        hidden = self.conv1(normalise(self.norm1, x, latent, state), state, silu=True)
        hidden = self.conv2(normalise(self.norm2, hidden, latent, state), state, silu=True)
        shortcut = self.nin_shortcut(x) if self.changes_width else x
        return hidden + shortcut if torch.is_grad_enabled() else hidden.add_(shortcut)


def normalise(norm: nn.Module, x: Tensor, latent: Tensor | None, state: CausalState) -> Tensor:
    """Apply a GroupNorm, or a SpatialNorm on the latent."""
    return norm(x) if latent is None else norm(x, latent, state)


class Downsample(nn.Module):
    """Half the height and width by a strided 2D convolution; half the frames first by averaging pairs when asked.

    Key: `conv` (2D). The lone first frame stays as it is. Zero padding is on the right and at the bottom only.
    """

    def __init__(self, channels: int, compress_time: bool) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """b c t h w -> b c t' h/2 w/2; t' = t, or 1 + (t - 1) / 2 with the lone frame, or t / 2 without."""
        if self.compress_time:
            x = _average_pairs(x, state.lone_first_frame)
        batch = x.shape[0]
        images = F.pad(x.transpose(1, 2).flatten(0, 1), (0, 1, 0, 1))
        return self.conv(images).unflatten(0, (batch, -1)).transpose(1, 2)


def _average_pairs(x: Tensor, lone_first_frame: bool) -> Tensor:
    first, rest = (x[:, :, :1], x[:, :, 1:]) if lone_first_frame else (x[:, :, :0], x)
    rest = (rest[:, :, ::2] + rest[:, :, 1::2]) * 0.5
    return torch.cat((first, rest), dim=2) if lone_first_frame else rest


class Upsample(nn.Module):
    """Double the height and width (nearest, then a 2D convolution); double the frames as well when asked.

    Key: `conv` (2D). The lone first frame is not doubled. Doubled frames are equal, so the convolution runs once for both.
    """

    def __init__(self, channels: int, expand_time: bool) -> None:
        super().__init__()
        self.expand_time = expand_time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """b c t h w -> b c t' 2h 2w; t' = t, or 1 + 2 (t - 1) with the lone frame, or 2 t without."""
        batch = x.shape[0]
        images = F.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2.0, mode="nearest")
        x = self.conv(images).unflatten(0, (batch, -1)).transpose(1, 2)
        if not self.expand_time:
            return x
        return x[:, :, _doubled_frames(x.shape[2], state.lone_first_frame, x.device)]


def _doubled_frames(num_frames: int, lone_first_frame: bool, device: torch.device) -> Tensor:
    """Indices 0 1 1 2 2 ... with the lone frame, 0 0 1 1 ... without."""
    doubled = torch.arange(2 * num_frames, device=device) // 2
    return doubled[1:] if lone_first_frame else doubled
