"""Convolution over time that never looks ahead, and the state it carries between the chunks of one clip.

Letters: b batch, c channels, t frames (at any level of the network), h w height and width, k kernel length in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cogvideox.vae import fewer_products, frame_runs
from cogvideox.vae.frame_runs import equal_runs, joined
from cogvideox.vae.latent_maps import LatentMaps
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
    channels_last: the layout of the features (see convolutions.py).
    latent_maps: what a decoder's norms make of the chunk's latent, where they don't do it one by one.
    scratch: memory for the input of one convolution at a time, reused by the next one (on a CPU fresh pages cost
        as much as several passes over them; the CUDA allocator reuses memory by itself).
    """

    lone_first_frame: bool = True
    last_chunk: bool = True
    tails: dict[nn.Module, Tensor] = field(default_factory=dict)
    channels_last: bool = True
    latent_maps: LatentMaps | None = None
    scratch: Tensor | None = None

    def take(self, conv: nn.Module) -> Tensor | None:
        """The tail that the previous chunk left for `conv`, or None in the first chunk."""
        return self.tails.pop(conv, None)

    def keep(self, conv: nn.Module, tail: Tensor) -> None:
        """Leave a tail for the next chunk. Without autograd it is copied, so that the large buffer can be freed."""
        if not self.last_chunk:
            self.tails[conv] = tail if torch.is_grad_enabled() else tail.clone()

    def buffer(self, shape: tuple[int, int, int, int, int], like: Tensor) -> Tensor:
        """Uninitialised memory of a shape b c t h w, for the input of the convolution whose weight is `like`. On a CPU
        the next call takes it back."""
        b, c, t, h, w = shape
        size = b * c * t * h * w
        if like.device.type != "cpu":
            flat = torch.empty(size, dtype=like.dtype, device=like.device)
        else:
            if self.scratch is None or self.scratch.numel() < size or self.scratch.dtype != like.dtype:
                self.scratch = None  # freed first
                self.scratch = torch.empty(size, dtype=like.dtype)
            flat = self.scratch[:size]
        if self.channels_last:
            return flat.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)
        return flat.view(b, t, c, h, w).transpose(1, 2) if like.dim() == 4 else flat.view(shape)  # frames are images


class CausalConv3d(nn.Module):
    """3D convolution: zero padding in space; in time preceded by the carried tail or by copies of the first frame.

    Calling it takes all frames of a chunk at once; `runs` takes them in pieces.
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
        if torch.is_grad_enabled():
            return self._with_autograd(x, state)
        if not self.context_frames:
            return convolve_frames(self.conv, x)
        (out,) = self.runs([x], x.shape[2], state)
        return out

    def runs(
        self, pieces: Iterable[Tensor], longest: int, state: CausalState, maps: NormMaps | None = None
    ) -> Iterator[Tensor]:
        """The convolution of frames that come in pieces, without autograd: for each b c_in t h w a b c_out t h w.

        A piece is let go before its output is made. To be taken to its end, where the tail is kept.
        longest: frames of the longest piece; none is shorter than the context but an only one.
        maps: the pieces are normalised and activated first.
        """
        assert not torch.is_grad_enabled(), "the input is overwritten run by run"
        context, tail = self.context_frames, state.take(self)
        padded, start, before = None, 0, 0
        for piece in pieces:
            b, c, t, h, w = piece.shape
            if padded is None:
                padded = state.buffer((b, c, longest + context, h, w), self.conv.weight)
            else:
                assert before >= context, f"a run of {before} frames has no context for the next one"
                padded[:, :, :context].copy_(padded[:, :, before : before + context])
            frames = padded[:, :, : t + context]
            body = frames[:, :, context:]
            if maps is None:
                body.copy_(piece)
            else:
                maps.write(piece, body, start)
            del piece
            if start == 0 and context:
                frames[:, :, :context].copy_(body[:, :, :1] if tail is None else tail)
            if start == 0:
                repeats_first, tail = tail is None, None
            yield self._convolve(frames, repeats_first=repeats_first and start == 0)
            start, before = start + t, t
        assert padded is not None, "no frames"
        if context:
            state.keep(self, padded[:, :, before : before + context])

    def _with_autograd(self, x: Tensor, state: CausalState) -> Tensor:
        tail = state.take(self)
        frames = x
        if self.context_frames:
            head = x[:, :, :1].expand(-1, -1, self.context_frames, -1, -1) if tail is None else tail
            frames = torch.cat((head, x), dim=2)
            state.keep(self, frames[:, :, -self.context_frames :])
        return self._convolve(frames, repeats_first=tail is None)

    def _convolve(self, frames: Tensor, *, repeats_first: bool) -> Tensor:
        """b c_in t+k-1 h w -> b c_out t h w. repeats_first: the context is copies of the first frame."""
        if self.context_frames and fewer_products.saves_time(frames):
            return fewer_products.causal_conv3d(frames, self.conv.weight, self.conv.bias, repeats_first=repeats_first)
        return convolve_frames(self.conv, frames)


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
