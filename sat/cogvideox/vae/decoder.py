"""Latent to video.

Letters: b batch, c channels, t pixel frames, h w pixels; f y x latent frames, height, width; z latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cogvideox.vae import norm_silu
from cogvideox.vae.blocks import ResnetBlock, SpatialNorm, Upsample, convolve_in, convolve_out
from cogvideox.vae.causal_conv import CausalConv3d, CausalState
from cogvideox.vae.latent_maps import LatentMaps


class DecoderStage(nn.Module):
    """The residual blocks of one level and the way up from it. Keys: `block.J`, `upsample`."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_blocks: int,
        num_groups: int,
        latent_channels: int,
        *,
        exact_sum: bool,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [channels] * (num_blocks - 1)
        self.block = nn.ModuleList(
            ResnetBlock(each, channels, num_groups, latent_channels, exact_sum=exact_sum) for each in inputs
        )
        self.upsample: Upsample | None = None


def last_convolution(stage: nn.Module) -> nn.Conv3d:
    """Of the stage's blocks, all of which but the first have convolutions like it."""
    assert isinstance(stage, DecoderStage), "levels are stages"
    block = stage.block[-1]
    assert isinstance(block, ResnetBlock), "blocks are residual"
    return block.conv2.conv


class Decoder(nn.Module):
    """The encoder's mirror: widest level first, every norm conditioned on the latent.

    Stages are stored by level (`up.0` is the full resolution) and run from the last to the first.
    Keys: `conv_in`, `mid.block_1`, `mid.block_2`, `up.I.block.J`, `up.I.upsample`, `norm_out`, `conv_out`.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        num_groups: int,
        time_levels: int,
    ) -> None:
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        top = widths[-1]
        self.conv_in = CausalConv3d(latent_channels, top)
        self.mid = nn.ModuleDict(
            {f"block_{i}": ResnetBlock(top, top, num_groups, latent_channels, exact_sum=True) for i in (1, 2)}
        )
        self.up = nn.ModuleList()
        for level, (before, width) in enumerate(zip([*widths[1:], top], widths, strict=True)):
            stage = DecoderStage(before, width, num_res_blocks + 1, num_groups, latent_channels, exact_sum=level > 0)
            if level > 0:
                stage.upsample = Upsample(width, expand_time=len(widths) - 1 - level < time_levels)
            self.up.append(stage)
        self.norm_out = SpatialNorm(widths[0], latent_channels, num_groups)
        self.conv_out = CausalConv3d(widths[0], out_channels)

    def forward(self, latent: Tensor, state: CausalState) -> Tensor:
        """b z f y x -> b c t h w; with r = 2^time_levels, t = 1 + (f - 1) r with the lone first frame, f r without."""
        if not torch.is_grad_enabled() and norm_silu.way_for(latent.device).casting_kernels:
            norms = [module.weights() for module in self.modules() if isinstance(module, SpatialNorm)]
            state.latent_maps = LatentMaps(norms, latent)
        x = convolve_in(self.conv_in, latent, state)
        for block in self.mid.values():
            assert isinstance(block, ResnetBlock), "blocks are residual"
            x = block.runs(x, state, latent)
        for stage in reversed(self.up):
            assert isinstance(stage, DecoderStage), "levels are stages"
            for block in stage.block:  # a call of the stage would hold its input while the last blocks run
                assert isinstance(block, ResnetBlock), "blocks are residual"
                x = block.runs(x, state, latent)
            x = x if stage.upsample is None else stage.upsample.runs(x, state)
        return convolve_out(self.norm_out, self.conv_out, x, latent, state)
