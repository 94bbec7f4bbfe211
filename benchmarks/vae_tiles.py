"""How much chunks and tiles change what the VAE makes of clips, against one call, and against diffusers' tiles.

    python benchmarks/vae_tiles.py                       # from the repository's root: the demo's VAE and held-out clips
    python benchmarks/vae_tiles.py --clips my_clips --height 192 --width 288 --tile 128 160 --overlap 32
    python benchmarks/vae_tiles.py --base my_model.yaml --clips my_clips --height 480 --width 720 --tile 256 384

Clips are read as training reads them: 17 frames at 8 frames per second, resized and cropped. fp32 throughout. PSNR in
dB, mean and worst of the clips; differences of latents are root mean squares relative to the latents' deviation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.config.load import load_config
from cogvideox.config.targets import instantiate
from cogvideox.data.clips import ClipDecoder, ClipSpec, ReadJob
from cogvideox.data.decode import open_reader
from cogvideox.data.media import Media
from cogvideox.data.sources.read import read_sources
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.vae.pieces import to_signed
from cogvideox.weights import vae_map

CHUNK_FRAMES = 8
Tiles = tuple[tuple[int, int], int]  # (height, width), overlap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="configs/demo.yaml", help="model YAML")
    parser.add_argument("--clips", default="demo/clips/held_out", help="folder of videos with captions")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--tile", type=int, nargs=2, default=[48, 64], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--overlap", type=int, default=16)
    options = parser.parse_args()
    clips = read_clips(options)
    node = load_config([options.base], [], "train", partial=True).model.first_stage_config
    tiles = (tuple(options.tile), options.overlap)
    with torch.no_grad():
        report(clips, node, tiles)


def read_clips(options: argparse.Namespace) -> list[Tensor]:
    """float [1, t, 3, h, w] in [-1, 1] each."""
    form = ClipSpec(
        video_size=(options.height, options.width),
        fps=8,
        max_num_frames=17,
        skip_frms_num=0,
        short_clips="error",
        random_start=False,
    )
    decoder = ClipDecoder(form, open_reader("pyav"))
    files = [Path(sample.media.path) for sample in read_sources([options.clips]).samples][: options.count]
    return [to_signed(decoder.read(ReadJob(Media(str(file)), 0, 0, 0)).video[None]) for file in files]


def report(clips: list[Tensor], node: dict, tiles: Tiles) -> None:
    """Print the table."""

    def ours(**settings: object) -> VideoAutoencoder:
        vae = instantiate({**node, "params": {**node["params"], "encode_chunk_frames": None, **settings}})
        vae.freeze()
        return vae

    plain, chunked = ours(), ours(encode_chunk_frames=CHUNK_FRAMES)
    tiled = ours(tile_size=tiles[0], tile_overlap=tiles[1])
    theirs = diffusers_tiles(plain, tiles)
    latents = [plain.encode(clip).mean for clip in clips]
    decoded = [plain.decode(latent) for latent in latents]

    def line(name: str, values: list[float], unit: str) -> None:
        worst = min(values) if unit == "dB" else max(values)
        print(f"{name:58} {sum(values) / len(values):7.1f} {worst:7.1f} {unit}", flush=True)

    def of_latents(encode: Callable[[Tensor], Tensor]) -> list[float]:
        pairs = zip((encode(clip) for clip in clips), latents, strict=True)
        return [float(100 * (mine - whole).square().mean().sqrt() / whole.std()) for mine, whole in pairs]

    print(
        f"{len(clips)} clips of {list(clips[0].shape[1:])}, tiles of {tiles[0]} overlapping by {tiles[1]}: mean, worst"
    )
    in_tiles = [tiled.decode(latent) for latent in latents]
    their_tiles = [theirs.decode(latent.transpose(1, 2)).sample.transpose(1, 2) for latent in latents]
    line("decoded in tiles, against untiled", list(map(psnr, in_tiles, decoded)), "dB")
    line("the same with diffusers' tiles", list(map(psnr, their_tiles, decoded)), "dB")
    line("decoded, against the clip", list(map(psnr, decoded, clips)), "dB")
    line("decoded in tiles, against the clip", list(map(psnr, in_tiles, clips)), "dB")
    line("encoded in chunks of 8, against one call", of_latents(lambda clip: chunked.encode(clip).mean), "%")
    line("encoded in tiles, against one call", of_latents(lambda clip: tiled.encode(clip).mean), "%")
    # In chunks of 8 as well: diffusers encodes no other way.
    their_encode = of_latents(lambda clip: theirs.encode(clip.transpose(1, 2)).latent_dist.mean.transpose(1, 2))
    line("the same with diffusers' tiles (and chunks of 8)", their_encode, "%")
    both = [tiled.decode(tiled.encode(clip).mean) for clip in clips]
    line("encoded and decoded in tiles, against the clip", list(map(psnr, both, clips)), "dB")


def diffusers_tiles(vae: VideoAutoencoder, tiles: Tiles) -> torch.nn.Module:
    """diffusers' VAE with the same weights, and tiles of this size and overlap."""
    from diffusers import AutoencoderKLCogVideoX

    state = {vae_map.sat_to_diffusers(name): value for name, value in vae.state_dict().items()}
    widths = [state[f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight"].shape[0] for level in range(4)]
    blocks = sum(name.startswith("encoder.down_blocks.0.resnets.") and "conv1.conv.weight" in name for name in state)
    groups = vae.encoder.mid.block_1.norm1.num_groups
    theirs = AutoencoderKLCogVideoX(
        block_out_channels=tuple(widths),
        layers_per_block=blocks,
        norm_num_groups=groups,
        latent_channels=vae.z_channels,
    )
    theirs.load_state_dict(state)
    (height, width), overlap = tiles
    theirs.enable_tiling(height, width, overlap / height, overlap / width)
    return theirs.eval().requires_grad_(False)


def psnr(first: Tensor, second: Tensor) -> float:
    """Of videos in [-1, 1], in dB."""
    error = (first.clamp(-1, 1) - second.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))


if __name__ == "__main__":
    main()
