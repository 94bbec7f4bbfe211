"""What decoding takes of a device's memory, and which pieces fit into what is free there: known before anything runs.

Letters: h w pixels of a frame or of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cogvideox.vae.blocks import ResnetBlock
from cogvideox.vae.causal_conv import CausalConv3d
from cogvideox.vae.decoder import Decoder, DecoderStage
from cogvideox.vae.frame_runs import run_lengths

SPARE = 1.1  # for what is not counted: cuDNN's workspaces, fragmentation


@dataclass(frozen=True)
class DecodePieces:
    """How a video passes the decoder.

    latent_frames: at a time. tile: height and width in pixels, None for whole frames. offload: what waits is moved to
    the CPU.
    """

    latent_frames: int
    tile: tuple[int, int] | None = None
    offload: bool = False

    def __str__(self) -> str:
        frames = f"{self.latent_frames} latent frame{'s' if self.latent_frames != 1 else ''} at a time"
        tiles = "whole frames" if self.tile is None else f"tiles of {self.tile[0]} x {self.tile[1]} pixels"
        return f"{frames}, {tiles}"


@dataclass(frozen=True)
class Choice:
    """The first pieces that fit, or the smallest ones. needed: bytes of these; fits: whether that is free."""

    pieces: DecodePieces
    needed: int
    fits: bool


def choose_pieces(options: Sequence[tuple[DecodePieces, int]], free: int) -> Choice:
    """The first of the options, each with the bytes it needs, that fits into `free` bytes; else the least needy one."""
    for pieces, needed in options:
        if needed <= free:
            return Choice(pieces, needed, True)
    return Choice(*min(options, key=lambda option: option[1]), False)


def decode_options(
    decoder: Decoder, published: DecodePieces, size: tuple[int, int], unit: int, frames_per_latent: int
) -> list[tuple[DecodePieces, int]]:
    """Pieces in the order of preference, and the bytes each needs, for frames of `size` (h, w) pixels.

    unit: pixels per latent pixel; frames_per_latent: pixel frames of a latent one. Smaller pieces come only after the
    published ones, since norm statistics, and so the pixels, differ slightly between them.
    """
    height, width = size
    half = (-(-height // (2 * unit)) * unit + 4 * unit, -(-width // (2 * unit)) * unit + 4 * unit)
    candidates = [published]
    if published.tile is None:
        candidates.append(DecodePieces(1, None, published.offload))
        if half[0] < height and half[1] < width:
            candidates.append(DecodePieces(1, half, True))
    return [(pieces, needed_bytes(decoder, pieces, size, frames_per_latent)) for pieces in candidates]


def needed_bytes(decoder: Decoder, pieces: DecodePieces, size: tuple[int, int], frames_per_latent: int) -> int:
    """Bytes beside the weights, for one video whose chunks carry their state: at most a tenth more than it takes."""
    height, width = size if pieces.tile is None else (min(a, b) for a, b in zip(pieces.tile, size, strict=True))
    tiles = 1 if pieces.offload else -(-size[0] // height) * -(-size[1] // width)
    area = height * width
    weight = decoder.conv_in.conv.weight
    state = 2 * tiles * (_context_channels(decoder, area) + decoder.conv_out.conv.in_channels * area)
    # The largest moment: a level is enlarged to full size, or its first block runs.
    first = decoder.up[0]
    assert isinstance(first, DecoderStage) and isinstance(first.block[0], ResnetBlock)
    channels = first.block[0].conv1.conv.in_channels
    frames = frames_per_latent * pieces.latent_frames + 1
    run = max(run_lengths(frames - 1, channels * area))
    working = channels * area * (frames + 2 * run + frames // 4)
    return int(SPARE * weight.element_size() * (state + working))


def _context_channels(decoder: Decoder, area: int) -> int:
    """Elements of one frame of context of all convolutions but the last one; area: pixels at full size."""
    levels = len(decoder.up)
    total = decoder.conv_in.conv.in_channels * (area >> 2 * (levels - 1))
    parts = [(block, levels - 1) for block in decoder.mid.values()]
    for level, stage in enumerate(decoder.up):
        assert isinstance(stage, DecoderStage), "levels are stages"
        parts += [(block, level) for block in stage.block]
    for part, level in parts:
        convs = [module for module in part.modules() if isinstance(module, CausalConv3d) and module.context_frames]
        total += sum(conv.conv.in_channels for conv in convs) * (area >> 2 * level)
    return total
