"""From a configuration to the recipes of its latents and contexts: the weights' hashes, and the settings that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cogvideox.caching.keys import Recipe
from cogvideox.caching.media_hashes import MediaHashes
from cogvideox.config.schema import ModelConfig
from cogvideox.config.signatures import read_signature
from cogvideox.data.media import Media
from cogvideox.errors import ConfigError
from cogvideox.model.files import vae_files
from cogvideox.text.encoders import find_encoder

# Parameters of the VAE that its posterior doesn't depend on.
_NOT_OF_ENCODING = ("ckpt_path", "out_channels", "decode_chunk_latent_frames", "offload_chunks")


def latent_recipe(
    config: ModelConfig, dtype: torch.dtype, stored: str, *, with_first_frame: bool, hashes: MediaHashes
) -> Recipe:
    """How latents are made.

    Args:
        dtype: that the VAE runs in.
        stored: dtype that moments are rounded to, "computed" for none.
        with_first_frame: whether the first frame is stored beside, for image-to-video.

    Raises: ConfigError for a VAE of random weights; CheckpointError, DataError for files that can't be read.
    """
    files = vae_files(config)
    if not files:
        raise ConfigError("args.cache: the VAE has no ckpt_path, and latents of random weights are worth nothing")
    return Recipe.of(
        "latents",
        str(files[0]),
        vae=_hashes(files, hashes),
        settings=_encoding(config),
        dtype=_name(dtype),
        stored=stored,
        first_frame=with_first_frame,
    )


def context_recipe(config: ModelConfig, dtype: torch.dtype, hashes: MediaHashes) -> Recipe:
    """How contexts are made. Raises: CheckpointError, DataError for files that can't be read."""
    node = config.conditioner_config["params"]["encoder"]
    params = {**read_signature(node["target"]).defaults, **node["params"]}
    files = find_encoder(params["model_dir"], params["cache_dir"])
    return Recipe.of(
        "contexts",
        str(files.folder),
        encoder=_hashes([*files.weights, files.configs[0]], hashes),
        tokenizer=_hashes(list(files.tokenizer), hashes),
        max_length=params["max_length"],
        dtype=_name(dtype),
    )


def _encoding(config: ModelConfig) -> dict[str, Any]:
    """With every default filled in, and without those that another setting leaves unused."""
    node = config.first_stage_config
    params = {**read_signature(node["target"]).defaults, **node["params"]}
    if params["tile_size"] is None:
        params["tile_overlap"] = None
    found = {name: value for name, value in params.items() if name not in _NOT_OF_ENCODING}
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in found.items()}


def _hashes(files: list[Path], hashes: MediaHashes) -> list[str]:
    return [hashes.of(Media(str(file))) for file in files]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
