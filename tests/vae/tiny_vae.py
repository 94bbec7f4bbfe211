"""A VAE that is built and run in milliseconds, with weights that hide nothing."""

from __future__ import annotations

import torch
from cogvideox.vae.autoencoder import VideoAutoencoder

CH = 8
CH_MULT = (1, 2, 2, 4)
RES_BLOCKS = 2
GROUPS = 4


def randomise(vae: torch.nn.Module, seed: int = 0) -> None:
    """Random non-zero weights everywhere, scaled so that activations and outputs have a deviation of about 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() > 1:
                noise *= (0.5 if "decoder.conv_out" in name else 1.0) / parameter[0].numel() ** 0.5
            else:
                noise = 0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            parameter.copy_(noise)


def tiny_vae(
    *,
    dtype: torch.dtype = torch.float32,
    frozen: bool = True,
    encode_chunk_frames: int | None = None,
    decode_chunk_latent_frames: int | None = 2,
    tile_size: tuple[int, int] | None = None,
    tile_overlap: int = 8,
    offload_chunks: bool = False,
) -> VideoAutoencoder:
    vae = VideoAutoencoder(
        ch=CH,
        ch_mult=CH_MULT,
        num_res_blocks=RES_BLOCKS,
        norm_num_groups=GROUPS,
        encode_chunk_frames=encode_chunk_frames,
        decode_chunk_latent_frames=decode_chunk_latent_frames,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
        offload_chunks=offload_chunks,
    ).to(dtype)
    randomise(vae)
    if frozen:
        vae.freeze()
    return vae


def clip(frames: int, height: int = 16, width: int = 24, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Random video b t c h w in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, height, width, generator=generator) * 2 - 1


def random_latent(frames: int, height: int = 2, width: int = 3, batch: int = 2, seed: int = 2) -> torch.Tensor:
    """Random latent b f c y x."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 16, height, width, generator=generator)


def without_norms(vae: VideoAutoencoder) -> VideoAutoencoder:
    """Norms see all frames of a call; replaced by constants they leave only what the carried state must make equal."""
    for module in vae.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, FixedNorm(child))
    return vae


class FixedNorm(torch.nn.GroupNorm):
    """Scale and shift of a GroupNorm with statistics that don't depend on the input."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:, None, None, None] + self.bias[:, None, None, None]
