"""Peaks of the memory of the autoencoder, counted on the meta device of torch: tensors without contents."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cogvideox.geometry import Geometry
from cogvideox.vae.autoencoder import VideoAutoencoder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


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
