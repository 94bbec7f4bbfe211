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
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.geometry import Geometry
from cogvideox.vae.autoencoder import VideoAutoencoder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors on one type of device that operators make, from their birth to their end.

    peak: the most that was alive at one time since the counter was made. Tensors that were there before are not in it.
    On the meta device a copy to the CPU, which torch refuses, gives zeros that take no memory.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.now, self.peak = device, 0, 0
        self._known: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves_meta = func is torch.ops.aten._to_copy.default and args[0].is_meta
        if leaves_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros((), dtype=kwargs.get("dtype") or args[0].dtype).expand(args[0].shape)
        for storage in self._storages(args):
            self._known.setdefault(storage._cdata, storage)
        result = func(*args, **kwargs)
        for storage in self._storages(result):
            self._count(storage)
        return result

    def _storages(self, values: Any) -> Iterator[torch.UntypedStorage]:
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, Tensor) and value.device.type == self.device:
                yield value.untyped_storage()

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size


def encode_bytes(vae: VideoAutoencoder, frames: int, height: int, width: int) -> int:
    """Peak of encoding one uint8 clip that lies on the CPU, by an autoencoder on the meta device."""
    video = torch.zeros((), dtype=torch.uint8).expand(1, frames, vae.in_channels, height, width)
    with LiveBytes("meta") as live:
        vae.encode(video)
    return live.peak


def decode_bytes(vae: VideoAutoencoder, frames: int, height: int, width: int) -> int:
    """Peak of decoding one clip chunk by chunk, by an autoencoder on the meta device."""
    latent_frames = Geometry(vae.temporal_compression).latent_frames(frames)
    size = (height // vae.spatial_compression, width // vae.spatial_compression)
    latent = torch.zeros(1, latent_frames, vae.z_channels, *size, device="meta")
    with LiveBytes("meta") as live:
        for _ in vae.decode_chunks(latent):
            pass
    return live.peak


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
