"""How a clip passes through encoder or decoder in pieces: chunks of frames, and in each chunk tile after tile.

All tiles of a chunk come before the next chunk, so that finished frames can be written while the rest is decoded, and
so that nothing grows with the clip's length. The price is that the carried convolution state of all tiles exists at
once: about as much as that of the untiled frame. With `offload` only the running tile's is on the device.

Letters: b batch, c channels, t frames, h w height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cogvideox.vae.causal_conv import CausalState
from cogvideox.vae.convolutions import Convolutions
from cogvideox.vae.tiling import TileGrid


@dataclass(frozen=True)
class PieceRunner:
    """Runs the encoder or the decoder piece by piece.

    network: the encoder or the decoder; its parameters say where and in which dtype the work is done.
    grid: the tiles of a frame.
    scale_in, scale_out: points per latent pixel and side in what goes in and what comes out.
    offload: finished chunks go to the CPU at once; so does the carried state of tiles that wait, when there are any.
    convolutions: how they run, which says the layout of the features.
    """

    network: nn.Module
    grid: TileGrid
    scale_in: int
    scale_out: int
    offload: bool
    convolutions: Convolutions

    def run(self, x: Tensor, chunk: int | None, *, lone_first_frame: bool) -> Iterator[Tensor]:
        """x b t c h w on any device -> b c t' h' w' per chunk. The carried state dies with this generator."""
        tails: list[dict[nn.Module, Tensor]] = [{} for _ in range(len(self.grid))]
        for start, end in chunk_bounds(x.shape[1], chunk):
            lone, is_last = lone_first_frame and start == 0, end == x.shape[1]
            parts = [
                self._run_tile(
                    x[:, start:end, :, rows, columns], CausalState(lone, is_last, own, self.convolutions.channels_last)
                )
                for (rows, columns), own in zip(self.grid.areas(self.scale_in), tails, strict=True)
            ]
            yield self.grid.join(parts, self.scale_out)

    def _run_tile(self, x: Tensor, state: CausalState) -> Tensor:
        """One chunk of one tile; x b t c h w, a view of the clip."""
        weight = next(self.network.parameters())
        tiles_wait = self.offload and len(self.grid) > 1
        if tiles_wait:
            _move(state.tails, weight.device)
        result: Tensor = self.network(_prepare(x, weight, self.convolutions.memory_format(5)), state)
        if tiles_wait:
            _move(state.tails, torch.device("cpu"))
        return result.cpu() if self.offload else result


def chunk_bounds(total: int, chunk: int | None) -> list[tuple[int, int]]:
    """Start and end of each chunk: `chunk` frames, the first one with the remainder added; None: all at once."""
    if chunk is None or total < 2 * chunk:
        return [(0, total)]
    first = chunk + total % chunk
    return [(0, first)] + [(start, start + chunk) for start in range(first, total, chunk)]


def to_signed(video: Tensor) -> Tensor:
    """uint8 pixels 0..255 -> fp32 in [-1, 1]."""
    return (video.float() - 127.5) / 127.5


def _prepare(x: Tensor, weight: Tensor, layout: torch.memory_format) -> Tensor:
    """A piece of the clip, b t c h w, as the network takes it: b c t h w, on its device and in its dtype."""
    frames = x.transpose(1, 2).to(weight.device, non_blocking=True)
    frames = (to_signed(frames) if frames.dtype == torch.uint8 else frames).to(weight.dtype)
    if not torch.is_grad_enabled():  # the work done in place, and the fast convolutions, want one layout
        frames = frames.contiguous(memory_format=layout)
    return frames


def _move(tails: dict[nn.Module, Tensor], device: torch.device) -> None:
    """Between a GPU and pinned memory of the host, which waits for neither: the GPU keeps the order of its copies."""
    for conv, tail in tails.items():
        if tail.is_cuda and device.type == "cpu":
            pinned = torch.empty_like(tail, device="cpu", pin_memory=True)
            tails[conv] = pinned.copy_(tail, non_blocking=True)
        else:
            tails[conv] = tail.to(device, non_blocking=True)
