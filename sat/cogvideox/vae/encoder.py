"""Video to latent moments.

Letters: b batch, c channels, t pixel frames, h w pixels; f y x latent frames, height, width; z latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cogvideox.vae.blocks import Downsample, ResnetBlock, convolve_in, convolve_out, group_norm
from cogvideox.vae.causal_conv import CausalConv3d, CausalState


class EncoderStage(nn.Module):
    """The residual blocks of one level and the way down from it. Keys: `block.J`, `downsample`."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int, num_groups: int, *, exact_sum: bool) -> None:
        super().__init__()
        inputs = [in_channels] + [channels] * (num_blocks - 1)
        self.block = nn.ModuleList(ResnetBlock(each, channels, num_groups, exact_sum=exact_sum) for each in inputs)
        self.downsample: Downsample | None = None


class Encoder(nn.Module):
    """Residual blocks at every level; height and width are halved between levels, frames after the first ones.

    ch * ch_mult[i] is the width of level i. Frames are halved after the first `time_levels` levels.
    Keys: `conv_in`, `down.I.block.J`, `down.I.downsample`, `mid.block_1`, `mid.block_2`, `norm_out`,
    `conv_out`.
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
        last = len(widths) - 1
        self.conv_in = CausalConv3d(in_channels, ch)
        self.down = nn.ModuleList()
        for level, (before, width) in enumerate(zip([ch, *widths[:-1]], widths, strict=True)):
            stage = EncoderStage(before, width, num_res_blocks, num_groups, exact_sum=level > 1)
            if level < last:
                stage.downsample = Downsample(width, compress_time=level < time_levels)
            self.down.append(stage)
        width = widths[last]
        self.mid = nn.ModuleDict({f"block_{i}": ResnetBlock(width, width, num_groups, exact_sum=True) for i in (1, 2)})
        self.norm_out = group_norm(width, num_groups)
        self.conv_out = CausalConv3d(width, 2 * latent_channels)

    def forward(self, video: Tensor, state: CausalState) -> Tensor:
        """b c t h w -> moments b 2z f y x: means, then log-variances."""
        x = convolve_in(self.conv_in, video, state)
        for stage in self.down:
            assert isinstance(stage, EncoderStage), "levels are stages"
            for block in stage.block:  # a call of the stage would hold its input while the last blocks run
                assert isinstance(block, ResnetBlock), "blocks are residual"
                x = block.runs(x, state)
            x = x if stage.downsample is None else stage.downsample.runs(x, state)
        for block in self.mid.values():
            assert isinstance(block, ResnetBlock), "blocks are residual"
            x = block.runs(x, state)
        return convolve_out(self.norm_out, self.conv_out, x, None, state)
