"""Convolution over time that never looks ahead, and the state it carries between the chunks of one clip.

Letters: b batch, c channels, t frames (at any level of the network), h w height and width, k kernel length in time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cogvideox.vae import fewer_products, frame_runs
from cogvideox.vae.frame_runs import equal_runs, joined
from cogvideox.vae.norm_silu import NormMaps


@dataclass
class CausalState:
    """What one encode or decode call carries from a chunk of frames to the next one.

    It belongs to the call, not to the modules: an exception or an abandoned generator drops it, and nothing
    can leak into the next video.

    lone_first_frame: the chunk that runs now begins with the frame that stands alone in time (not merged with others
        by the encoder, not doubled by the decoder).
    last_chunk: nothing follows, so tails are dropped as they are used.
    tails: for each convolution the last k - 1 frames of its input, b c k-1 h w.
    scratch: memory for the input of one convolution at a time, reused by the next one (on a CPU fresh pages cost
        as much as several passes over them; the CUDA allocator reuses memory by itself).
    """

    lone_first_frame: bool = True
    last_chunk: bool = True
    tails: dict[nn.Module, Tensor] = field(default_factory=dict)
    scratch: Tensor | None = None

    def take(self, conv: nn.Module) -> Tensor | None:
        """The tail that the previous chunk left for `conv`, or None in the first chunk."""
        return self.tails.pop(conv, None)

    def keep(self, conv: nn.Module, tail: Tensor) -> None:
        """Leave a tail for the next chunk. Without autograd it is copied, so that the large buffer can be freed."""
        if not self.last_chunk:
            self.tails[conv] = tail if torch.is_grad_enabled() else tail.clone()

    def buffer(self, shape: tuple[int, int, int, int, int], like: Tensor) -> Tensor:
        """Uninitialised memory of a shape b c t h w, channels last. On a CPU the next call takes it back."""
        b, c, t, h, w = shape
        size = b * c * t * h * w
        if like.device.type != "cpu":
            flat = torch.empty(size, dtype=like.dtype, device=like.device)
        else:
            if self.scratch is None or self.scratch.numel() < size or self.scratch.dtype != like.dtype:
                self.scratch = None  # freed first
                self.scratch = torch.empty(size, dtype=like.dtype)
            flat = self.scratch[:size]
        return flat.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)


class CausalConv3d(nn.Module):
    """3D convolution: zero padding in space; in time preceded by the carried tail or by copies of the first frame.

    It runs in two steps, so that the caller can free x between them: `convolve(pad(x, state))`; calling it does both.
    Keys: `conv.weight` [c_out, c_in, k, k, k], `conv.bias`.
    Source: CogVideoX (arXiv 2408.06072), section 2.1; the padding mode that the released 3D VAE uses.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.context_frames = kernel_size - 1
        padding = (0, kernel_size // 2, kernel_size // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=padding)

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """b c_in t h w -> b c_out t h w."""
        return self.convolve(self.pad(x, state))

    def pad(self, x: Tensor, state: CausalState, maps: NormMaps | None = None) -> Padded:
        """b c_in t h w -> b c_in t+k-1 h w. With `maps` (not under autograd) x is normalised and activated too."""
        tail = state.take(self)
        if torch.is_grad_enabled():
            assert maps is None, "norm maps have no gradient"
            head = x[:, :, :1].expand(-1, -1, self.context_frames, -1, -1) if tail is None else tail
            frames = torch.cat((head, x), dim=2) if self.context_frames else x
        else:
            frames = self._pad_into_buffer(x, tail, maps, state)
        if self.context_frames:
            state.keep(self, frames[:, :, -self.context_frames :])
        return Padded(frames, repeats_first=tail is None)

    def convolve(self, padded: Padded) -> Tensor:
        """b c_in t+k-1 h w -> b c_out t h w."""
        frames, weight, bias = padded.frames, self.conv.weight, self.conv.bias
        if self.context_frames and fewer_products.saves_time(frames):
            return fewer_products.causal_conv3d(frames, weight, bias, repeats_first=padded.repeats_first)
        return convolve_frames(self.conv, frames)

    def _pad_into_buffer(self, x: Tensor, tail: Tensor | None, maps: NormMaps | None, state: CausalState) -> Tensor:
        """The convolution's input, written once: tail or first frame in front, (activated) x behind."""
        if not self.context_frames and maps is None:
            return x
        b, c, t, h, w = x.shape
        padded = state.buffer((b, c, t + self.context_frames, h, w), x)
        body = padded[:, :, self.context_frames :]
        if maps is None:
            body.copy_(x)
        else:
            maps.write(x, body)
        padded[:, :, : self.context_frames].copy_(body[:, :, :1] if tail is None else tail)
        return padded


@dataclass(frozen=True)
class Padded:
    """Input of a causal convolution, b c t+k-1 h w, valid until the next `pad` with the same state.

    repeats_first: the context is copies of the first frame.
    """

    frames: Tensor
    repeats_first: bool


def convolve_frames(conv: nn.Conv3d, frames: Tensor) -> Tensor:
    """b c_in t+k-1 h w -> b c_out t h w, in runs of frames whose input and output fit into MAX_ELEMENTS; where not even
    one frame of all samples does, sample by sample."""
    context = conv.kernel_size[0] - 1
    b, c_in, t, h, w = frames.shape
    t -= context
    limit, area = frame_runs.MAX_ELEMENTS, b * h * w
    most = min(limit // (c_in * area) - context, limit // (conv.out_channels * area))
    if most < 1 and b > 1:
        return joined((convolve_frames(conv, sample) for sample in frames.split(1)), b, dim=0)
    runs = equal_runs(t, most)
    return joined((conv(frames[:, :, run.start : run.stop + context]) for run in runs), t, dim=2)
