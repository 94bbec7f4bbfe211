"""The pieces of encoder and decoder: normalisation, residual block, resampling.

Letters: b batch, c channels, t frames, h w height and width at this level; f y x latent frames, height, width; z latent
channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cogvideox.vae import fewer_products, frame_runs
from cogvideox.vae.causal_conv import CausalConv3d, CausalState, convolve_frames
from cogvideox.vae.frame_runs import drained, equal_runs, joined, longest, regrouped
from cogvideox.vae.latent_maps import SpatialWeights
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

    def weights(self) -> SpatialWeights:
        """Its parts, for `LatentMaps`."""
        return SpatialWeights(self.norm_layer, self.conv_y.conv, self.conv_b.conv)

    def maps(self, pieces: Sequence[Tensor], latent: Tensor, state: CausalState) -> NormMaps:
        """What `forward` computes for all frames of the pieces, as maps of the latent's size."""
        if state.latent_maps is not None:
            return state.latent_maps.maps(self.norm_layer, pieces, lone_first_frame=state.lone_first_frame)
        norm = group_norm_maps(self.norm_layer, pieces)
        scale, shift = self.conv_y(latent, state), self.conv_b(latent, state)
        shift = torch.addcmul(shift, norm.shift, scale)
        return NormMaps(norm.scale * scale, shift, norm.num_frames, state.lone_first_frame)


def activated(norm: nn.Module, x: Tensor, latent: Tensor | None, state: CausalState) -> Tensor:
    """silu(norm(x)), b c t h w; the norm is a GroupNorm, or a SpatialNorm when there is a latent."""
    return F.silu(norm(x) if latent is None else norm(x, latent, state))


def activation_maps(norm: nn.Module, pieces: Sequence[Tensor], latent: Tensor | None, state: CausalState) -> NormMaps:
    """What `activated` computes of all frames of the pieces, without autograd."""
    if latent is None:
        assert isinstance(norm, nn.GroupNorm), "a SpatialNorm needs the latent"
        return group_norm_maps(norm, pieces)
    assert isinstance(norm, SpatialNorm), "only a SpatialNorm takes the latent"
    return norm.maps(pieces, latent, state)


def convolve_in(conv: CausalConv3d, x: Tensor, state: CausalState) -> list[Tensor]:
    """The first convolution of a network: b c_in t h w -> pieces b c_out t' h w, a single one under autograd."""
    if torch.is_grad_enabled():
        return [conv(x, state)]
    b, _, t, h, w = x.shape
    lengths = frame_runs.run_lengths(t, b * conv.conv.out_channels * h * w)
    return list(conv.runs(x.split(lengths, dim=2), max(lengths), state))


def convolve_out(
    norm: nn.Module, conv: CausalConv3d, pieces: list[Tensor], latent: Tensor | None, state: CausalState
) -> Tensor:
    """The end of a network, conv(silu(norm(x))): pieces b c_in t' h w, which are given up -> b c_out t h w."""
    if torch.is_grad_enabled():
        return conv(activated(norm, pieces.pop(), latent, state), state)
    maps, most = activation_maps(norm, pieces, latent, state), longest(pieces)
    outputs = list(conv.runs(drained(pieces), most, state, maps))  # small: few channels
    return joined(outputs, maps.num_frames, dim=2)


class ResnetBlock(nn.Module):
    """Norm, SiLU, causal convolution, twice, plus the input (by a pointwise convolution when widths differ).

    Keys: `norm1`, `conv1.conv`, `norm2`, `conv2.conv`, `nin_shortcut`. With `latent_channels` norms are SpatialNorms.
    exact_sum: the sum stays in float32, also where convolutions have fewer digits (not under autograd). For the levels
        below half size, where it costs little and keeps most of what rounding loses.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_groups: int,
        latent_channels: int | None = None,
        *,
        exact_sum: bool,
    ) -> None:
        super().__init__()
        self.exact_sum = exact_sum
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
        """b c_in t h w -> b c_out t h w; latent b z f y x for SpatialNorm. For autograd: out of place."""
        hidden = self.conv1(activated(self.norm1, x, latent, state), state)
        hidden = self.conv2(activated(self.norm2, hidden, latent, state), state)
        return hidden + (convolve_frames(self.nin_shortcut, x) if self.changes_width else x)

    def runs(self, pieces: list[Tensor], state: CausalState, latent: Tensor | None = None) -> list[Tensor]:
        """Pieces b c_in t' h w, which are given up or overwritten -> the same frames, b c_out t' h w.

        Beside x and the hidden features, or the shortcut in place of x, only a run of frames is in memory.
        """
        if torch.is_grad_enabled():
            return [self(pieces.pop(), state, latent)]
        most = longest(pieces)
        maps = activation_maps(self.norm1, pieces, latent, state)
        shortcut: list[Tensor] = [] if self.changes_width else pieces
        inputs = self._with_shortcut(pieces, shortcut) if self.changes_width else iter(pieces)
        hidden = list(self.conv1.runs(inputs, most, state, maps))
        maps = activation_maps(self.norm2, hidden, latent, state)
        dtype = torch.promote_types(hidden[0].dtype, torch.float32) if self.exact_sum else hidden[0].dtype
        out, targets = [], drained(shortcut)
        for residual in self.conv2.runs(drained(hidden), most, state, maps):
            out.append(next(targets).to(dtype).add_(residual))
            del residual  # the next one is made now
        return out

    def _with_shortcut(self, pieces: list[Tensor], shortcut: list[Tensor]) -> Iterator[Tensor]:
        """Take the pieces off the list; what the shortcut makes of each goes to the other one first."""
        while pieces:
            shortcut.append(convolve_frames(self.nin_shortcut, pieces[0].to(self.nin_shortcut.weight.dtype)))
            yield pieces.pop(0)


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
        if not torch.is_grad_enabled():
            pieces = self.runs([x], state)
            return joined(pieces, sum(piece.shape[2] for piece in pieces), dim=2)
        frames = _average_pairs(x, state.lone_first_frame) if self.compress_time else x
        return self._convolve(F.pad(frames, (0, 1, 0, 1)))

    def runs(self, pieces: list[Tensor], state: CausalState) -> list[Tensor]:
        """`forward` of frames in pieces, which are given up: to pieces of other lengths."""
        if torch.is_grad_enabled():
            return [self(pieces.pop(), state)]
        b, c, _, h, w = pieces[0].shape
        lone, step = (int(state.lone_first_frame), 2) if self.compress_time else (0, 1)
        num_frames = lone + (sum(piece.shape[2] for piece in pieces) - lone) // step
        lengths = frame_runs.run_lengths(num_frames, b * c * (h + 1) * (w + 1))
        needed = [step * length for length in lengths]
        needed[0] -= lone
        out: list[Tensor] = []
        for length, group in zip(lengths, regrouped(pieces, needed), strict=True):
            padded = state.buffer((b, c, length, h + 1, w + 1), self.conv.weight)
            self._pad_into(padded, group, lone if not out else 0)
            out.append(self._convolve(padded))
        return out

    def _pad_into(self, padded: Tensor, group: list[Tensor], lone: int) -> None:
        """The convolution's input, written once: averaged frames with a row and a column of zeros behind. The group's
        frames are given up."""
        h, w = group[0].shape[3:]
        padded[:, :, :, h].zero_()
        padded[..., w].zero_()
        start = 0
        while group:
            x = group.pop(0)
            if self.compress_time:
                body = padded[:, :, start : start + lone + (x.shape[2] - lone) // 2, :h, :w]
                body[:, :, :lone].copy_(x[:, :, :lone])
                _average(x[:, :, lone::2], x[:, :, lone + 1 :: 2], body[:, :, lone:])
            else:
                body = padded[:, :, start : start + x.shape[2], :h, :w]
                body.copy_(x)
            start, lone = start + body.shape[2], 0

    def _convolve(self, padded: Tensor) -> Tensor:
        """b c t h+1 w+1 -> b c t h/2 w/2."""
        images = padded.transpose(1, 2).flatten(0, 1)
        runs = equal_runs(len(images), frame_runs.MAX_ELEMENTS // images[0].numel())
        images = joined((self.conv(images[run]) for run in runs), len(images), dim=0)
        return images.unflatten(0, (padded.shape[0], -1)).transpose(1, 2)


def _average(a: Tensor, b: Tensor, out: Tensor) -> None:
    """In one pass on a GPU, which also rounds once only."""
    if a.device.type == "cpu":
        torch.add(a, b, out=out).mul_(0.5)
    else:
        torch.lerp(a, b, 0.5, out=out)


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
        if torch.is_grad_enabled():
            return self._enlarged(x, lone=state.lone_first_frame)
        pieces = self.runs([x], state)
        return joined(pieces, sum(piece.shape[2] for piece in pieces), dim=2)

    def runs(self, pieces: list[Tensor], state: CausalState) -> list[Tensor]:
        """`forward` of frames in pieces, which are given up: to pieces of other lengths."""
        if torch.is_grad_enabled():
            return [self(pieces.pop(), state)]
        b, c, _, h, w = pieces[0].shape
        lone, step = (int(state.lone_first_frame), 2) if self.expand_time else (0, 1)
        num_frames = step * sum(piece.shape[2] for piece in pieces) - lone
        lengths = frame_runs.run_lengths(num_frames, 4 * b * c * h * w)
        needed = [length // step for length in lengths]
        needed[0] = (lengths[0] + lone) // step
        for index in range(len(pieces)):
            pieces[index] = pieces[index].to(self.conv.weight.dtype)
        out: list[Tensor] = []
        for group in regrouped(pieces, needed):
            x = group.pop() if len(group) == 1 else torch.cat(group, dim=2)
            group.clear()
            out.append(self._enlarged(x, lone=lone == 1 and not out))
        return out

    def _enlarged(self, x: Tensor, *, lone: bool) -> Tensor:
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
        return x.index_select(2, doubled[1:] if lone else doubled)

    def _enlarge(self, images: Tensor) -> Tensor:
        """n c h w -> n c 2h 2w."""
        return self.conv(F.interpolate(images, scale_factor=2.0, mode="nearest"))
