"""From a configuration to a model on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from cogvideox.config.clip_sizes import latent_channels
from cogvideox.config.schema import ModelConfig
from cogvideox.config.targets import ComponentNode, instantiate
from cogvideox.errors import ConfigError
from cogvideox.model.files import check_text_encoder
from cogvideox.model.frozen_parts import context_sizes, geometry_of, place_conditioner, place_vae
from cogvideox.model.image_condition import ImageCondition
from cogvideox.model.video_diffusion import FrozenParts, VideoDiffusion
from cogvideox.text.conditioner import Conditioner
from cogvideox.transformer.model import DiffusionTransformer

LORA_TARGET = "cogvideox.transformer.lora.LoraMixin"


def build_model(
    config: ModelConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    seed: int,
    checkpoint_activations: bool | None = None,
    weights_follow: bool = False,
) -> VideoDiffusion:
    """Build every part on one device. The VAE and the text encoder come with their weights, the transformer with
    random ones. Who knows the captions beforehand calls the three steps one by one, and encodes between them.

    dtype: of the transformer, the VAE and the text encoder: float32, bfloat16, or float16 (CUDA only).
    seed: of the random weights and of the training randomness; all processes must pass the same one.
    checkpoint_activations: overrides network_config when given.
    weights_follow: `load_transformer` comes next, so no random weights are drawn for it to overwrite (for 5B they
        take minutes), and the transformer is made on its device directly. New adapters start as always.
    Raises: ConfigError, CheckpointError when parts are missing or don't fit together.
    """
    device = torch.device(device)
    check_precision(device, dtype)
    model = draft_model(
        config, dtype=dtype, seed=seed, checkpoint_activations=checkpoint_activations, weights_follow=weights_follow
    )
    place_text_encoder(model, config, device, dtype)
    place_model(model, config, device, dtype)
    return model


def draft_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    seed: int,
    checkpoint_activations: bool | None = None,
    weights_follow: bool = False,
    with_vae: bool = True,
    with_text_encoder: bool = True,
) -> VideoDiffusion:
    """Every part, fitted together, and nothing on a device yet: VAE and text encoder are on the CPU, and a transformer
    whose weights follow is nowhere (`meta`). See build_model.

    with_vae, with_text_encoder: False for what a cache makes unnecessary; its weights are not read then.
    """
    # The transformer comes first. SAT makes process groups for it, which takes all processes at once; the other parts
    # read files, which may fail on one machine only: it would not take part, and the others would wait for it.
    node = _network_node(config, checkpoint_activations)
    transformer = _build_empty(node, dtype) if weights_follow else _build_random(node, seed, dtype)
    if with_text_encoder:
        check_text_encoder(config)
    with _seeded(seed):  # their constructors draw weights too, before the stored ones are loaded
        vae = instantiate(config.first_stage_config) if with_vae else None
        conditioner = instantiate(config.conditioner_config) if with_text_encoder else _without_encoder(config)
    image, channels = image_condition(config), latent_channels(config.first_stage_config)
    _check_fit(transformer, conditioner, channels, with_image=image is not None)
    return VideoDiffusion(
        transformer,
        FrozenParts(vae, conditioner),
        instantiate(config.schedule_config),
        instantiate(config.loss_fn_config),
        geometry=geometry_of(config),
        latent_channels=channels,
        scale_factor=config.scale_factor,
        seed=seed,
        samples_at_a_time=config.en_and_decode_n_samples_a_time,
        image=image,
    )


def place_text_encoder(
    model: VideoDiffusion, config: ModelConfig, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Move, cast and check the text encoder of a draft. Raises: CheckpointError as place_conditioner."""
    place_conditioner(model.conditioner, config, device, dtype)


def place_model(model: VideoDiffusion, config: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> None:
    """Give the other parts of a draft their memory on the device. Raises: CheckpointError as above, for the VAE."""
    device = torch.device(device)
    if model.frozen.vae is not None:
        place_vae(model.vae, config, device, dtype)
    if model.device.type == "meta":
        _make_empty(model, device)
    else:
        model.transformer.to(device)
    model.schedule.move(device)


def _without_encoder(config: ModelConfig) -> Conditioner:
    params = {name: value for name, value in config.conditioner_config["params"].items() if name != "encoder"}
    return Conditioner(context_sizes(config), **params)


def image_condition(config: ModelConfig) -> ImageCondition | None:
    """How an image-to-video model sees its image; None for text-to-video models. Raises: ConfigError."""
    if not config.noised_image_input:
        return None
    scale = config.scale_factor if config.image_latent_scale is None else config.image_latent_scale
    return ImageCondition(scale, config.noised_image_dropout)


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Raises: ConfigError for fp16 without CUDA."""
    if dtype == torch.float16 and device.type != "cuda":
        raise ConfigError(f"fp16 needs a CUDA device, this run is on {device.type}: use bf16 or fp32")


def with_lora(config: ModelConfig, rank: int, alpha: float) -> ModelConfig:
    """The same configuration with adapters in the network, for checkpoints that hold some."""
    network = dict(config.network_config)
    params: dict[str, Any] = dict(network["params"])
    lora = {"target": LORA_TARGET, "params": {"r": rank, "lora_alpha": alpha}}
    params["modules"] = {**params["modules"], "lora_config": lora}
    return replace(config, network_config={**network, "params": params})


def has_lora(config: ModelConfig) -> bool:
    """Whether the network is configured with adapters."""
    return bool(config.network_config["params"]["modules"].get("lora_config"))


def _network_node(config: ModelConfig, checkpoint_activations: bool | None) -> ComponentNode:
    params = dict(config.network_config["params"])
    if config.compile_model:
        params["compile_blocks"] = True
    if checkpoint_activations is not None:
        params["checkpoint_activations"] = checkpoint_activations
    return {**config.network_config, "params": params}


def _build_random(node: ComponentNode, seed: int, dtype: torch.dtype) -> DiffusionTransformer:
    with _seeded(seed):
        return instantiate(node, dtype=dtype)


def _build_empty(node: ComponentNode, dtype: torch.dtype) -> DiffusionTransformer:
    """Shapes without memory."""
    with torch.device("meta"):
        return instantiate(node, dtype=dtype)


def _make_empty(model: VideoDiffusion, device: torch.device) -> None:
    """Memory without values, but for what a checkpoint may lack."""
    model.transformer.to_empty(device=device)
    with _seeded(model.seed):
        model.transformer.init_unstored()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU depend on the seed alone, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_fit(
    transformer: DiffusionTransformer, conditioner: Conditioner, z_channels: int, *, with_image: bool
) -> None:
    """Raises: ConfigError that names the keys of two parts that disagree."""
    network = transformer.network
    text_width = transformer.mixins["patch_embed"].text_hidden_size
    channels, encoder = "first_stage_config z_channels", "the text encoder's"
    pairs = (
        ("patch_embed_config text_hidden_size", text_width, f"{encoder} width", conditioner.width),
        ("network_config text_length", network.text_length, f"{encoder} max_length", conditioner.max_length),
        ("network_config out_channels", network.out_channels, channels, z_channels),
    )
    for ours, our_value, theirs, their_value in pairs:
        if our_value != their_value:
            raise ConfigError(f"model: {ours} is {our_value}, but {theirs} is {their_value}; they must agree")
    needed = z_channels * (2 if with_image else 1)
    if network.in_channels != needed:
        kind = "with noised_image_input" if with_image else "without noised_image_input"
        raise ConfigError(
            f"model: network_config in_channels is {network.in_channels}, but {kind} it must be {needed}; "
            f"{channels} is {z_channels}, and an image-to-video network takes twice as many"
        )
