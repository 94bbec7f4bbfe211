"""The sizes of one transformer, as every mixin needs them.

Letters: f latent frames, y x latent height/width, l text tokens, d hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cogvideox.errors import ConfigError
from cogvideox.geometry import Geometry


@dataclass(frozen=True)
class NetworkShape:
    """What the network is built for. Sizes are latent ones; a run may use smaller frames than these.

    patch_size is (frames, height, width). dtype is the parameters' dtype.
    """

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    latent_frames: int
    latent_height: int
    latent_width: int
    patch_size: tuple[int, int, int]
    in_channels: int
    out_channels: int
    time_embed_dim: int
    text_length: int
    dtype: torch.dtype

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def image_channels(self) -> int:
        """Input channels beyond the latent's own: the image latent of an I2V network; 0 for T2V."""
        return self.in_channels - self.out_channels

    @property
    def patch_volume(self) -> int:
        """Latent positions per token."""
        frames, height, width = self.patch_size
        return frames * height * width

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Video tokens along (frames, height, width) at the configured size.

        Latent frames that patches don't divide count as padded: 21 make 11 tokens of 2 frames.
        """
        geometry = Geometry(patch_size=self.patch_size)
        return geometry.token_grid(self.latent_frames, self.latent_height, self.latent_width)

    @property
    def num_video_tokens(self) -> int:
        """Video tokens at the configured size."""
        frames, height, width = self.token_grid
        return frames * height * width


def patch_triple(patch_size: int | Sequence[int]) -> tuple[int, int, int]:
    """The (frames, height, width) form of a patch size: `2` means (1, 2, 2), as published 1.0 configs write it.

    Raises:
        ConfigError: neither a positive integer nor three of them.
    """
    sizes = (1, patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if len(sizes) != 3 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ConfigError(
            f"network_config.patch_size is {patch_size!r}; write one positive integer (height and width) "
            "or three (frames, height, width), e.g. 2 or [2, 2, 2]"
        )
    return sizes  # type: ignore[return-value]


def latent_frame_count(num_frames: int, temporal_compression: int) -> int:
    """Latent frames of a clip: the first frame alone, then one for every `temporal_compression` frames.

    Raises:
        ConfigError: not a multiple of temporal_compression plus one; names the nearest legal counts.
    """
    geometry = Geometry(temporal_compression)
    problem = geometry.frames_problem(num_frames)
    if problem:
        raise ConfigError(f"network_config.num_frames {problem}")
    return geometry.latent_frames(num_frames)
