"""The pieces of encoder and decoder: normalisation, residual block, resampling.

Letters: b batch, c channels, t frames, h w height and width at this level; f y x latent frames, height, width; z latent
channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cogvideox.vae import fewer_products, frame_runs
from cogvideox.vae.causal_conv import CausalConv3d, CausalState, Padded, convolve_frames
from cogvideox.vae.frame_runs import equal_runs, joined
from cogvideox.vae.norm_silu import NormMaps, apply_map, covered_frames, group_norm_maps

GROUP_NORM_EPS = 1e-6


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """GroupNorm with the epsilon of the released weights."""
    return nn.GroupNorm(num_groups, channels, eps=GROUP_NORM_EPS)


class SpatialNorm(nn.Module):
    """GroupNorm whose result is scaled and shifted by maps computed from the latent.

    Keys: `norm_layer.*`, `conv_y.conv.*` (scale), `conv_b.conv.*` (shift).
    The published layer enlarges the latent to the size of the features and then applies two 1x1x1 convolutions. Nearest
    enlargement commutes with a pointwise convolution, so here the maps stay at latent size and are repeated in use.
    Source: MoVQ (arXiv 2209.09002), section 3.1, with the first frame enlarged apart.
    """

    def __init__(self, channels: int, latent_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm_layer = group_norm(channels, num_groups)
        self.conv_y = CausalConv3d(latent_channels, channels, kernel_size=1)
        self.conv_b = CausalConv3d(latent_channels, channels, kernel_size=1)

    def forward(self, x: Tensor, latent: Tensor, state: CausalState) -> Tensor:
        """x b c t h w, latent b z f y x -> b c t h w. t is a multiple of f, or t - 1 of f - 1 with the lone frame."""
        x = self.norm_layer(x)
        scale, shift = self.conv_y(latent, state), self.conv_b(latent, state)
        t = x.shape[2]
        pieces = covered_frames(t, latent.shape[2], state.lone_first_frame, slab_frames=t)
        return torch.cat([apply_map(x[:, :, a], scale[:, :, m], shift[:, :, m]) for a, m in pieces], dim=2)

    def maps(self, x: Tensor, latent: Tensor, state: CausalState) -> NormMaps:
        """What `forward` computes, as maps of the latent's size."""
        norm = group_norm_maps(self.norm_layer, x)
        scale, shift = self.conv_y(latent, state), self.conv_b(latent, state)
        return NormMaps(norm.scale * scale, norm.shift * scale + shift, state.lone_first_frame)


def pad_activated(norm: nn.Module, conv: CausalConv3d, x: Tensor, latent: Tensor | None, state: CausalState) -> Padded:
    """silu(norm(x)), padded for `conv`; the norm is a GroupNorm, or a SpatialNorm when there is a latent."""
    if torch.is_grad_enabled():
        return conv.pad(F.silu(norm(x) if latent is None else norm(x, latent, state)), state)
    if latent is None:
        assert isinstance(norm, nn.GroupNorm), "a SpatialNorm needs the latent"
        return conv.pad(x, state, group_norm_maps(norm, x))
    assert isinstance(norm, SpatialNorm), "only a SpatialNorm takes the latent"
    return conv.pad(x, state, norm.maps(x, latent, state))


class ResnetBlock(nn.Module):
    """Norm, SiLU, causal convolution, twice, plus the input (by a pointwise convolution when widths differ).

    Keys: `norm1`, `conv1.conv`, `norm2`, `conv2.conv`, `nin_shortcut`. With `latent_channels` norms are SpatialNorms.
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
        self.changes_width = in_channels != out_channels
        if self.changes_width:
            self.nin_shortcut = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, state: CausalState, latent: Tensor | None = None) -> Tensor:
        """b c_in t h w -> b c_out t h w; latent b z f y x for SpatialNorm."""
        hidden = self.conv1.convolve(pad_activated(self.norm1, self.conv1, x, latent, state))
        padded = pad_activated(self.norm2, self.conv2, hidden, latent, state)
        del hidden  # a full-size tensor less while the second convolution runs
        hidden = self.conv2.convolve(padded)
        shortcut = convolve_frames(self.nin_shortcut, x) if self.changes_width else x
        return hidden + shortcut if torch.is_grad_enabled() else hidden.add_(shortcut)


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
        if torch.is_grad_enabled():
            frames = _average_pairs(x, state.lone_first_frame) if self.compress_time else x
            padded = F.pad(frames, (0, 1, 0, 1))
        else:
            padded = self._pad_into_buffer(x, state)
        images = padded.transpose(1, 2).flatten(0, 1)
        runs = equal_runs(len(images), frame_runs.MAX_ELEMENTS // images[0].numel())
        images = joined((self.conv(images[run]) for run in runs), len(images), dim=0)
        return images.unflatten(0, (x.shape[0], -1)).transpose(1, 2)

    def _pad_into_buffer(self, x: Tensor, state: CausalState) -> Tensor:
        """The convolution's input, written once: averaged frames with a row and a column of zeros behind."""
        b, c, t, h, w = x.shape
        lone = int(state.lone_first_frame)
        num_frames = lone + (t - lone) // 2 if self.compress_time else t
        padded = state.buffer((b, c, num_frames, h + 1, w + 1), x)
        padded[:, :, :, h].zero_()
        padded[..., w].zero_()
        body = padded[:, :, :, :h, :w]
        if not self.compress_time:
            body.copy_(x)
            return padded
        body[:, :, :lone].copy_(x[:, :, :lone])
        torch.add(x[:, :, lone::2], x[:, :, lone + 1 :: 2], out=body[:, :, lone:]).mul_(0.5)
        return padded


def _average_pairs(x: Tensor, lone_first_frame: bool) -> Tensor:
    first, rest = (x[:, :, :1], x[:, :, 1:]) if lone_first_frame else (x[:, :, :0], x)
    return torch.cat((first, (rest[:, :, ::2] + rest[:, :, 1::2]) * 0.5), dim=2)


class Upsample(nn.Module):
    """Double the height and width (nearest, then a 2D convolution); double the frames as well when asked.

    Key: `conv` (2D). The lone first frame is not doubled. Doubled frames are equal: the convolution runs once for both.
    """

    def __init__(self, channels: int, expand_time: bool) -> None:
        super().__init__()
        self.expand_time = expand_time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """b c t h w -> b c t' 2h 2w; t' = t, or 1 + 2 (t - 1) with the lone frame, or 2 t without."""
        batch = x.shape[0]
        images = x.transpose(1, 2).flatten(0, 1)
        if fewer_products.saves_time(x):
            images = fewer_products.upsampled_conv2d(images, self.conv.weight, self.conv.bias)
        else:
            largest = 4 * images[0].numel()  # the convolution keeps the width
            runs = equal_runs(len(images), frame_runs.MAX_ELEMENTS // largest)
            images = joined((self._enlarge(images[run]) for run in runs), len(images), dim=0)
        x = images.unflatten(0, (batch, -1)).transpose(1, 2)
        if not self.expand_time:
            return x
        doubled = torch.arange(2 * x.shape[2], device=x.device) // 2
        return x.index_select(2, doubled[1:] if state.lone_first_frame else doubled)

    def _enlarge(self, images: Tensor) -> Tensor:
        """n c h w -> n c 2h 2w."""
        return self.conv(F.interpolate(images, scale_factor=2.0, mode="nearest"))
