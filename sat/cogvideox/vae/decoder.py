"""Latent to video.

Letters: b batch, c channels, t pixel frames, h w pixels; f y x latent frames, height, width; z latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cogvideox.vae.blocks import ResnetBlock, SpatialNorm, Upsample, pad_activated
from cogvideox.vae.causal_conv import CausalConv3d, CausalState


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
        top = len(widths) - 1
        self.conv_in = CausalConv3d(latent_channels, widths[top])
        self.mid = nn.ModuleDict(
            {f"block_{i}": ResnetBlock(widths[top], widths[top], num_groups, latent_channels) for i in (1, 2)}
        )
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            stage = nn.Module()
            inputs = [widths[min(level + 1, top)]] + [width] * num_res_blocks
            stage.block = nn.ModuleList(ResnetBlock(before, width, num_groups, latent_channels) for before in inputs)
            if level > 0:
                stage.upsample = Upsample(width, expand_time=top - level < time_levels)
            self.up.append(stage)
        self.norm_out = SpatialNorm(widths[0], latent_channels, num_groups)
        self.conv_out = CausalConv3d(widths[0], out_channels)

    def forward(self, latent: Tensor, state: CausalState) -> Tensor:
        """b z f y x -> b c t h w; t = 1 + (f - 1) * 2^time_levels with the lone first frame, f * 2^time_levels without."""
        x = self.conv_in(latent, state)
        for block in self.mid.values():
            x = block(x, state, latent)
        for stage in reversed(self.up):
            for block in stage.block:
                x = block(x, state, latent)
            if hasattr(stage, "upsample"):
                x = stage.upsample(x, state)
        return self.conv_out.convolve(pad_activated(self.norm_out, self.conv_out, x, latent, state))
