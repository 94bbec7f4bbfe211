"""Latent frames for a transformer whose patches span several of them (CogVideoX1.5: two).

The VAE turns 4k + 1 pixel frames into k + 1 latents, an odd number for the clips that 1.5 is trained on, and its
patches take two latents each. One copy of the first latent is therefore put in front of a clip before the network
sees it, and taken away again before anything is decoded or stored: 81 frames in, 81 frames out.

Letters: b batch, f latent frames, c latent channels, y x latent height and width.

Source: the released 1.5 weights are trained and sampled this way; diffusers drops the same first latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cogvideox.errors import ShapeError
from cogvideox.geometry import Geometry


def num_padded(frames: int, patch_frames: int) -> int:
    """Latents that the network sees of `frames` real ones. Raises: ShapeError names the nearest that it can see."""
    geometry = Geometry(patch_size=(patch_frames, 2, 2))
    problem = geometry.latent_frames_problem(frames)
    if problem:
        raise ShapeError(f"a clip of {frames} latent frames doesn't fit the network: their number {problem}")
    return geometry.padded_frames(frames)


def pad_frames(latent: Tensor, patch_frames: int) -> Tensor:
    """Real latents [..., f, c, y, x] to those that the network sees. Raises: ShapeError."""
    if num_padded(latent.shape[-4], patch_frames) == latent.shape[-4]:
        return latent
    return torch.cat([latent.narrow(-4, 0, 1), latent], dim=-4)


def unpad_frames(latent: Tensor, patch_frames: int) -> Tensor:
    """What `pad_frames` was given: padded latents [..., f, c, y, x] without their padding."""
    if patch_frames == 1:
        return latent
    frames = latent.shape[-4]
    assert frames % patch_frames == 0 and frames > patch_frames, f"{frames} latents are not padded ones"
    return latent.narrow(-4, 1, frames - 1)
