"""Convolution over time that never looks ahead, and the state it carries between the chunks of one clip.

Letters: b batch, c channels, t frames (at any level of the network), h w height and width, k kernel length in time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class CausalState:
    """What one encode or decode call carries from a chunk of frames to the next one.

    It belongs to the call, not to the modules: an exception or an abandoned generator drops it, and nothing
    can leak into the next video.

    lone_first_frame: the chunk that runs now begins with the frame that stands alone in time (not merged with others
        by the encoder, not doubled by the decoder).
    last_chunk: nothing follows, so tails are dropped as they are used.
    tails: for each convolution the last k - 1 frames of its input, b c k-1 h w.
    """

    lone_first_frame: bool = True
    last_chunk: bool = True
    tails: dict[nn.Module, Tensor] = field(default_factory=dict)

    def take(self, conv: nn.Module) -> Tensor | None:
        """The tail that the previous chunk left for `conv`, or None in the first chunk."""
        return self.tails.pop(conv, None)

    def keep(self, conv: nn.Module, tail: Tensor) -> None:
        """Leave a tail for the next chunk. Without autograd it is copied, so that the large buffer can be freed."""
        if not self.last_chunk:
            self.tails[conv] = tail if torch.is_grad_enabled() else tail.clone()


class CausalConv3d(nn.Module):
    """3D convolution: zero padding in space; in time preceded by the carried tail or by copies of the first frame.

    Keys: `conv.weight` [c_out, c_in, k, k, k], `conv.bias`.
    Source: CogVideoX (arXiv 2408.06072), section 2.1; the padding mode that the released 3D VAE uses.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.context_frames = kernel_size - 1
        padding = (0, kernel_size // 2, kernel_size // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=padding)

    def forward(self, x: Tensor, state: CausalState, *, silu: bool = False) -> Tensor:
        """b c_in t h w -> b c_out t h w. With `silu` the activation is applied to x first, in the same pass as the padding."""
        if not self.context_frames:
            return self.conv(F.silu(x) if silu else x)
        tail = state.take(self)
        if torch.is_grad_enabled():
            x = F.silu(x) if silu else x
            head = x[:, :, :1].expand(-1, -1, self.context_frames, -1, -1) if tail is None else tail
            padded = torch.cat((head, x), dim=2)
        else:
            padded = self._pad_into_buffer(x, tail, silu)
        state.keep(self, padded[:, :, -self.context_frames :])
        return self.conv(padded)

    def _pad_into_buffer(self, x: Tensor, tail: Tensor | None, silu: bool) -> Tensor:
        """The convolution's input, written once: tail or first frame in front, (activated) x behind."""
        b, c, t, h, w = x.shape
        memory_format = torch.channels_last_3d if x.stride(1) == 1 else torch.contiguous_format
        shape = (b, c, t + self.context_frames, h, w)
        padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
        body = padded[:, :, self.context_frames :]
        if silu:
            torch.ops.aten.silu.out(x, out=body)
        else:
            body.copy_(x)
        padded[:, :, : self.context_frames].copy_(body[:, :, :1] if tail is None else tail)
        return padded
