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


def check_latent_frames(frames: int, patch_frames: int) -> None:
    """Raises: ShapeError for a number of real latents that one more doesn't turn into whole patches; names the
    nearest that it does."""
    if patch_frames == 1 and frames >= 1:
        return
    if patch_frames > 1 and frames > 1 and (frames + 1) % patch_frames == 0:
        return
    legal = nearest_latent_frames(frames, patch_frames)
    what = "a single latent (an image)" if frames == 1 else f"a clip of {frames} latents"
    raise ShapeError(
        f"{what} doesn't fit patches of {patch_frames} latents with one in front as padding; "
        f"nearest: {' or '.join(map(str, legal))}"
    )


def nearest_latent_frames(frames: int, patch_frames: int) -> list[int]:
    """The legal counts of real latents just below and just above an illegal one."""
    if patch_frames == 1:
        return [1]
    below = (frames + 1) // patch_frames * patch_frames - 1
    return [count for count in (below, below + patch_frames) if count > 1] or [2 * patch_frames - 1]


def num_padded(frames: int, patch_frames: int) -> int:
    """Latents that the network sees of `frames` real ones. Raises: ShapeError."""
    check_latent_frames(frames, patch_frames)
    return frames if patch_frames == 1 else frames + 1


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
