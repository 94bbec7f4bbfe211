"""What is free on the device, and decoding that fits into it."""

from __future__ import annotations

import torch

from cogvideox.vae.autoencoder import VideoAutoencoder

ADAM_BYTES = 8  # two moments in float32 per trained weight, which come with the first step


def free_bytes(device: torch.device) -> int | None:
    """What a process can still allocate, with what its allocator holds in reserve; None where nothing limits it."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fit_decoding(
    vae: VideoAutoencoder, height: int, width: int, device: torch.device, *, still_to_come: int = 0
) -> None:
    """Choose the pieces that videos of height x width pixels are decoded in, by what is free on the device.

    still_to_come: bytes that will be taken before a video is decoded.
    """
    free = free_bytes(device)
    if free is not None:
        vae.fit_decoding(height, width, max(0, free - still_to_come))
