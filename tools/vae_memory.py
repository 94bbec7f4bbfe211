"""What encoding and decoding a clip take of a device's memory, computed without the device.

    python tools/vae_memory.py --frames 81 --height 768 --width 1360
    python tools/vae_memory.py --frames 81 --height 768 --width 1360 --tile 416 720 --offload

The autoencoder runs on tensors without contents (torch's meta device) the way it runs on a GPU, and every tensor is
counted while it lives. Not counted: cuDNN's workspaces, fragmentation, the CUDA context (about 0.5 GB). The peak is
reached after three chunks, so there is no need to give more frames than that. The weights are printed apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.vae.autoencoder import VideoAutoencoder
from simulated_cuda.meta_memory import decode_bytes, encode_bytes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=720)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--encode_chunk_frames", type=int, default=8, help="0: the clip in one call")
    parser.add_argument("--decode_chunk_latent_frames", type=int, default=2)
    parser.add_argument("--tile", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="tile_size, in pixels")
    parser.add_argument("--overlap", type=int, default=64, help="tile_overlap, in pixels")
    parser.add_argument("--offload", action="store_true", help="offload_chunks")
    options = parser.parse_args()
    with torch.device("meta"):
        vae = VideoAutoencoder(
            encode_chunk_frames=options.encode_chunk_frames or None,
            decode_chunk_latent_frames=options.decode_chunk_latent_frames,
            tile_size=options.tile,
            tile_overlap=options.overlap,
            offload_chunks=options.offload,
        ).to(DTYPES[options.dtype])
    vae.freeze()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in vae.parameters())
    size = (options.frames, options.height, options.width)
    for name, amount in (
        ("weights", weights),
        ("encode", encode_bytes(vae, *size)),
        ("decode", decode_bytes(vae, *size)),
    ):
        print(f"{name:8s} {amount / 2**30:6.2f} GiB")


if __name__ == "__main__":
    main()
