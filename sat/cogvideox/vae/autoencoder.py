"""The 3D causal autoencoder as the rest of the framework sees it.

Letters: b batch, t pixel frames, c channels, h w pixels; f latent frames, y x latent height and width.
Inside, tensors are b c t h w, in channels-last memory or what suits the device; that stays in this folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cogvideox.errors import CheckpointError, ConfigError, ShapeError
from cogvideox.geometry import Geometry
from cogvideox.log import amount, get_logger
from cogvideox.vae.convolutions import DEFAULT, Convolutions, Timer, fastest, time_on_device
from cogvideox.vae.decode_memory import Choice, DecodePieces, choose_pieces, decode_options
from cogvideox.vae.decoder import Decoder, last_convolution
from cogvideox.vae.encoder import Encoder
from cogvideox.vae.pieces import PieceRunner
from cogvideox.vae.posterior import DiagonalGaussian
from cogvideox.vae.tiling import check_tile, tile_grid
from cogvideox.weights import vae_map
from cogvideox.weights.key_rules import check_finite_loaded, check_types
from cogvideox.weights.sat_folder import read_vae

_log = get_logger(__name__)
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


class VideoAutoencoder(nn.Module):
    """Video to latents (4 times fewer frames, 8 times fewer pixels per side) and back. No scale factor here.

    Args:
        ckpt_path: weights to load: SAT's 3d-vae.pt, or a diffusers `vae` folder or safetensors file. The
            autoencoder is then frozen. Without it the weights are random and trainable.
        z_channels: channels of the latent.
        in_channels, out_channels: channels of the video that goes in and comes out.
        ch, ch_mult: the width of level i is ch * ch_mult[i]; height and width are halved levels - 1 times.
        num_res_blocks: residual blocks per encoder level (the decoder has one more).
        norm_num_groups: groups of every GroupNorm; divides every width.
        temporal_compression: a power of two, frames per latent frame.
        encode_chunk_frames: None encodes a clip in one call, as the model was trained; a multiple of
            temporal_compression encodes causal chunks of so many frames, the first one taking the remainder (8 is
            diffusers' rule). Chunks bound the memory; norm statistics are then per chunk, so results differ.
        decode_chunk_latent_frames: latent frames decoded at a time, the first chunk taking the remainder. 2 is what
            the original samples with; None decodes in one call (for training the autoencoder).
        tile_size: (height, width) in pixels, multiples of spatial_compression: larger frames pass in tiles of this
            size, spread evenly and blended where they overlap. Tiles bound the memory of large frames; norm statistics
            are then per tile, so results differ (docs/memory.md has figures). None, and smaller frames: no tiles.
        tile_overlap: the least overlap of neighbouring tiles in pixels, a multiple of spatial_compression.
        offload_chunks: results are moved to the CPU chunk by chunk, and stay there; with tiles, the carried state of
            those that wait is kept there too. Least memory on the device, at the price of the copies.

    Raises: ConfigError for arguments that don't fit together, CheckpointError for weights that don't fit.
    Source: CogVideoX (arXiv 2408.06072), section 2.1; the encoding and decoding schemes of its released code.
    """

    def __init__(
        self,
        ckpt_path: str | None = None,
        z_channels: int = 16,
        in_channels: int = 3,
        out_channels: int = 3,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 3,
        norm_num_groups: int = 32,
        temporal_compression: int = 4,
        encode_chunk_frames: int | None = None,
        decode_chunk_latent_frames: int | None = 2,
        tile_size: Sequence[int] | None = None,
        tile_overlap: int = 64,
        offload_chunks: bool = False,
    ) -> None:
        super().__init__()
        time_levels = _check_architecture(ch, ch_mult, num_res_blocks, norm_num_groups, temporal_compression)
        _check_chunks(encode_chunk_frames, decode_chunk_latent_frames, temporal_compression)
        self.in_channels, self.z_channels = in_channels, z_channels
        self.temporal_compression = temporal_compression
        self.spatial_compression = 2 ** (len(ch_mult) - 1)
        self.encode_chunk_frames = encode_chunk_frames
        self.decode_chunk_latent_frames = decode_chunk_latent_frames
        self.tile = check_tile(tile_size, tile_overlap, self.spatial_compression)
        self.offload_chunks = offload_chunks
        self.convolutions = DEFAULT  # until fit_convolutions chooses
        self.decode_tile, self.decode_offload = self.tile, offload_chunks  # until fit_decoding chooses smaller pieces
        self.encoder = Encoder(in_channels, z_channels, ch, ch_mult, num_res_blocks, norm_num_groups, time_levels)
        self.decoder = Decoder(out_channels, z_channels, ch, ch_mult, num_res_blocks, norm_num_groups, time_levels)
        if ckpt_path is not None:
            self.load_checkpoint(ckpt_path)
            self.freeze()

    def encode(self, video: Tensor) -> DiagonalGaussian:
        """Encode clips.

        Args:
            video: b t c h w, uint8 in 0..255 or floating point in [-1, 1], on any device: pieces are moved and cast one
                by one.
                t is k * temporal_compression + 1 (1 is an image); h and w are multiples of spatial_compression.

        Returns: the posterior over latents b f c y x, f = k + 1; float32 (float64 for a float64 autoencoder), on the
            parameters' device, or on the CPU with offload_chunks.
        Raises: ShapeError.
        """
        self._check_video(video)
        with self._at_work(video, self.encoder):
            unit = self.spatial_compression
            grid = tile_grid(video.shape[3] // unit, video.shape[4] // unit, self.tile)
            runner = PieceRunner(self.encoder, grid, unit, 1, self.offload_chunks, self.convolutions)
            chunks = list(runner.run(video, self.encode_chunk_frames, lone_first_frame=True))
            moments = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=2)
            moments = moments.transpose(1, 2)
            mean, logvar = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=2)
        return DiagonalGaussian(mean.contiguous(), logvar.contiguous())

    def decode(self, latent: Tensor, *, lone_first_frame: bool = True) -> Tensor:
        """Decode latents: as many frames as were encoded.

        Args:
            latent: b f c y x, as the posterior gives it, any float dtype (cast to the parameters'), on any device.
            lone_first_frame: the first latent is one frame, as the encoder makes it. False, for comparisons only: it
                is temporal_compression frames like all others, what diffusers takes it for when f is even.

        Returns: video b t c h w in the parameters' dtype, about [-1, 1]; on their device, or on the CPU with
            offload_chunks. t = 1 + temporal_compression * (f - 1); without a lone frame temporal_compression * f.
        Raises: ShapeError.
        """
        chunks = list(self.decode_chunks(latent, lone_first_frame=lone_first_frame))
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)

    def decode_chunks(self, latent: Tensor, *, lone_first_frame: bool = True) -> Iterator[Tensor]:
        """Decode as `decode` does, yielding each chunk of frames, b t' c h w, as soon as it is there.

        Raises: ShapeError, at the call and not at the first chunk.
        """
        self._check_latent(latent)
        grid = tile_grid(latent.shape[3], latent.shape[4], self.decode_tile)
        runner = PieceRunner(self.decoder, grid, 1, self.spatial_compression, self.decode_offload, self.convolutions)
        chunks = runner.run(latent, self.decode_chunk_latent_frames, lone_first_frame=lone_first_frame)
        return (chunk.transpose(1, 2) for chunk in self._stepwise(chunks, latent, self.decoder))

    def fit_decoding(self, height: int, width: int, free: int) -> Choice:
        """Decode in the configured pieces if they fit into `free` bytes for videos of height x width pixels, else in
        the largest smaller ones that do; says so in the log. For one video at a time; encoding stays as it is."""
        unit, tile = self.spatial_compression, self.decode_tile
        in_pixels = None if tile is None else (tile.height * unit, tile.width * unit)
        configured = DecodePieces(self.decode_chunk_latent_frames or 2, in_pixels, self.decode_offload)
        options = decode_options(self.decoder, configured, (height, width), unit, self.temporal_compression)
        choice = choose_pieces(options, free)
        if choice.pieces != configured:
            self.decode_chunk_latent_frames = choice.pieces.latent_frames
            self.decode_tile = check_tile(choice.pieces.tile, 8 * unit, unit)
            self.decode_offload = choice.pieces.offload
        if choice.pieces != configured or not choice.fits:
            _log.warning(
                "videos of %d x %d are decoded with %s: %s needs %s, %s are free; normalisation sees less at once, so "
                "pixels differ slightly%s",
                height, width, choice.pieces, configured, amount(options[0][1]), amount(free),
                "" if choice.fits else f". Even this needs {amount(choice.needed)} and may run out of memory",
            )  # fmt: skip
        return choice

    def fit_convolutions(self, timer: Timer = time_on_device) -> None:
        """Run convolutions in the way that the device does fastest; takes some seconds, and says so in the log. For a
        frozen autoencoder on a CUDA device: on others nothing is tried, and while it trains, layouts are torch's."""
        parameters = list(self.parameters())
        if parameters[0].device.type != "cuda" or any(each.requires_grad for each in parameters):
            return
        self.use_convolutions(fastest(self.heaviest_convolutions(), timer))

    def use_convolutions(self, chosen: Convolutions) -> None:
        """Run convolutions so from now on, and lay out their weights."""
        if chosen != self.convolutions:
            self.convolutions = chosen
            chosen.lay_out(self)

    def heaviest_convolutions(self) -> list[nn.Conv3d]:
        """One of full and one of half size: the encoder and the decoder spend most of their time in such ones."""
        return [last_convolution(stage) for stage in list(self.decoder.up)[:2]]

    def freeze(self) -> None:
        """Evaluation mode, no gradients, weights in the features' layout: for all but training the autoencoder."""
        self.eval().requires_grad_(False)
        self.convolutions.lay_out(self)

    def load_checkpoint(self, path: str) -> None:
        """Load all weights from SAT's 3d-vae.pt, or from a diffusers VAE folder or safetensors file.

        Raises: CheckpointError that lists missing, unexpected and misshapen tensors.
        """
        place = Path(os.path.expanduser(path))
        file = place / DIFFUSERS_FILE if (place / DIFFUSERS_FILE).is_file() else place
        size = f" ({amount(file.stat().st_size)})" if file.is_file() else ""
        _log.info("loading the VAE from %s%s", file, size)
        state = read_vae(file, check=False)
        if any(".down_blocks." in name or ".up_blocks." in name for name in state):
            levels = len(self.encoder.down)
            state = {vae_map.diffusers_to_sat(name, levels): value for name, value in state.items()}
        own = self.state_dict()
        _check_state(state, own, path)
        pairs = {name: (value, own[name]) for name, value in state.items()}
        check_types(pairs, "VAE", path)
        self.load_state_dict(state)
        check_finite_loaded(pairs, "VAE", path)

    def _stepwise(self, chunks: Iterator[Tensor], x: Tensor, network: nn.Module) -> Iterator[Tensor]:
        """Set the gradient mode around each step only: it must not reach the consumer between two steps."""
        while True:
            with self._at_work(x, network):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    @contextmanager
    def _at_work(self, x: Tensor, network: nn.Module) -> Iterator[None]:
        """Autograd as it is set outside, but off when nothing here needs a gradient: work is then done in place."""
        needed = x.requires_grad or any(parameter.requires_grad for parameter in network.parameters())
        with ExitStack() as stack:
            stack.enter_context(self.convolutions.in_use())
            if not needed:
                stack.enter_context(torch.no_grad())
            yield

    def _check_video(self, video: Tensor) -> None:
        _check_rank(video, self.in_channels, "video", "b t c h w", or_uint8=True)
        frames, height, width = video.shape[1], *video.shape[-2:]
        geometry = Geometry(self.temporal_compression, self.spatial_compression, (1, 1, 1))
        problem = geometry.frames_problem(frames)
        if problem:
            raise ShapeError(f"a clip of {frames} frames can't be encoded: their number {problem}")
        problem = geometry.size_problem((height, width))
        if problem:
            raise ShapeError(f"a video of {height} x {width} can't be encoded: [height, width] {problem}")

    def _check_latent(self, latent: Tensor) -> None:
        _check_rank(latent, self.z_channels, "latent", "b f c y x")
        if 0 in latent.shape:
            raise ShapeError(f"latent b f c y x is {tuple(latent.shape)}: there is nothing to decode")


def _check_rank(x: Tensor, channels: int, name: str, letters: str, *, or_uint8: bool = False) -> None:
    if x.dim() != 5 or x.shape[2] != channels:
        raise ShapeError(f"{name} must be {letters} with c = {channels}, got shape {tuple(x.shape)}")
    if not x.is_floating_point() and not (or_uint8 and x.dtype == torch.uint8):
        raise ShapeError(f"{name} must be floating point{' or uint8' if or_uint8 else ''}, got {x.dtype}")


def _check_architecture(ch: int, ch_mult: Sequence[int], num_res_blocks: int, groups: int, temporal: int) -> int:
    """Returns how many levels compress time."""
    if not ch_mult or num_res_blocks < 1:
        raise ConfigError(
            f"a VAE needs levels and blocks: ch_mult is {list(ch_mult)}, num_res_blocks is {num_res_blocks}"
        )
    bad_widths = [ch * mult for mult in (1, *ch_mult) if (ch * mult) % groups]
    if bad_widths:
        raise ConfigError(
            f"norm_num_groups {groups} must divide every width of the VAE, but not {bad_widths[0]} (ch * ch_mult)"
        )
    levels = temporal.bit_length() - 1
    if temporal < 1 or temporal != 2**levels or levels > len(ch_mult) - 1:
        valid = ", ".join(str(2**level) for level in range(len(ch_mult)))
        raise ConfigError(f"temporal_compression {temporal} is not possible with {len(ch_mult)} levels; valid: {valid}")
    return levels


def _check_chunks(encode_chunk_frames: int | None, decode_chunk_latent_frames: int | None, temporal: int) -> None:
    if encode_chunk_frames is not None and (encode_chunk_frames < 1 or encode_chunk_frames % temporal):
        raise ConfigError(f"encode_chunk_frames must be null or a multiple of {temporal}, got {encode_chunk_frames}")
    if decode_chunk_latent_frames is not None and decode_chunk_latent_frames < 1:
        raise ConfigError(f"decode_chunk_latent_frames must be null or at least 1, got {decode_chunk_latent_frames}")


def _check_state(state: dict[str, Tensor], own: dict[str, Tensor], path: str) -> None:
    problems = []
    for title, names in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        if names:
            problems.append(f"{title}: {_some(sorted(names))}")
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if shapes:
        problems.append(f"wrong shape: {_some(shapes)}")
    if problems:
        raise CheckpointError(
            f"{path} does not fit this VAE (check ch, ch_mult, num_res_blocks, z_channels): {'; '.join(problems)}"
        )


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
