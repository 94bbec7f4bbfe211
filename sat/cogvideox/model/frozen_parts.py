"""The parts that are used but never trained, VAE and text encoder, on a device; and what is known of them unbuilt.

Nothing here imports the transformer, and with it SAT, which takes seconds: who fills a cache needs neither.
"""

from __future__ import annotations

import torch
from torch import nn

from cogvideox.config.clip_sizes import read_sizes
from cogvideox.config.schema import ModelConfig
from cogvideox.config.signatures import read_signature
from cogvideox.config.targets import ComponentNode
from cogvideox.errors import CheckpointError
from cogvideox.geometry import Geometry
from cogvideox.text.conditioner import Conditioner, ContextSizes
from cogvideox.text.encoders import find_encoder
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.weights.key_rules import shorten
from cogvideox.weights.safetensors_stream import finite_flag


def place_vae(vae: VideoAutoencoder, config: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move, cast and check a VAE. Raises: CheckpointError for NaN or infinity in its weights."""
    vae.to(device=device, dtype=dtype)
    _check_frozen(vae, config.first_stage_config)
    vae.fit_convolutions()  # while the transformer's memory is free


def place_conditioner(
    conditioner: Conditioner, config: ModelConfig, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Move, cast and check a text encoder. On a CPU, float16 becomes float32: T5 takes three times as long there in
    float16. Raises: CheckpointError for NaN or infinity in its weights."""
    device = torch.device(device)
    is_slow = device.type == "cpu" and dtype == torch.float16
    conditioner.move(device, torch.float32 if is_slow else dtype)
    _check_frozen(conditioner, config.conditioner_config)


def geometry_of(config: ModelConfig) -> Geometry:
    """How clips become tokens."""
    return read_sizes(config.network_config["params"], config.first_stage_config["params"]).geometry


def context_sizes(config: ModelConfig) -> ContextSizes:
    """Tokens and width of a context, without the text encoder's weights. Raises: CheckpointError."""
    node = config.conditioner_config["params"]["encoder"]
    params = {**read_signature(node["target"]).defaults, **node["params"]}
    settings = find_encoder(params["model_dir"], params["cache_dir"]).settings
    return ContextSizes(params["max_length"], settings["d_model"])


def _check_frozen(part: nn.Module, node: ComponentNode) -> None:
    """Look for NaN and infinity where VAE or text encoder are by now, in the type that they run in.

    Raises: CheckpointError that names them.
    """
    flags = {name: finite_flag(parameter) for name, parameter in part.named_parameters()}
    if flags and not torch.stack(list(flags.values())).all():
        broken = [name for name, flag in flags.items() if not flag]
        kind = str(next(part.parameters()).dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{_source_of(node)} holds NaN or infinity in {len(broken)} weights, in {kind}: {shorten(broken)}. If "
            "it does in float32 too, the file is damaged: copy or download it again"
        )


def _source_of(node: ComponentNode) -> str:
    """The file or folder that a VAE or a text encoder comes from, for messages."""
    params = node["params"]
    encoder = (params.get("encoder") or {}).get("params") or {}
    return str(params.get("ckpt_path") or encoder.get("model_dir") or node["target"])
