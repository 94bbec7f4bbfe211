"""Video to latent moments.

Letters: b batch, c channels, t pixel frames, h w pixels; f y x latent frames, height, width; z latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cogvideox.vae.blocks import Downsample, ResnetBlock, group_norm, pad_activated
from cogvideox.vae.causal_conv import CausalConv3d, CausalState


class Encoder(nn.Module):
    """Residual blocks at every level, halving height and width between levels and frames after the first ones.

    ch * ch_mult[i] is the width of level i. Frames are halved after the first `time_levels` levels.
    Keys: `conv_in`, `down.I.block.J`, `down.I.downsample`, `mid.block_1`, `mid.block_2`, `norm_out`, `conv_out`.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        num_groups: int,
        time_levels: int,
    ) -> None:
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = CausalConv3d(in_channels, ch)
        self.down = nn.ModuleList()
        width_before = ch
        for level, width in enumerate(widths):
            stage = nn.Module()
            inputs = [width_before] + [width] * (num_res_blocks - 1)
            stage.block = nn.ModuleList(ResnetBlock(before, width, num_groups) for before in inputs)
            if level < len(widths) - 1:
                stage.downsample = Downsample(width, compress_time=level < time_levels)
            self.down.append(stage)
            width_before = width
        self.mid = nn.ModuleDict({f"block_{i}": ResnetBlock(width, width, num_groups) for i in (1, 2)})
        self.norm_out = group_norm(width, num_groups)
        self.conv_out = CausalConv3d(width, 2 * latent_channels)

    def forward(self, video: Tensor, state: CausalState) -> Tensor:
        """b c t h w -> moments b 2z f y x: means, then log-variances."""
        x = self.conv_in(video, state)
        for stage in self.down:
            for block in stage.block:
                x = block(x, state)
            if hasattr(stage, "downsample"):
                x = stage.downsample(x, state)
        for block in self.mid.values():
            x = block(x, state)
        return self.conv_out.convolve(pad_activated(self.norm_out, self.conv_out, x, None, state))
