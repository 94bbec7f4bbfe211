"""From a configuration to a model on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cogvideox.config.schema import ModelConfig
from cogvideox.config.targets import ComponentNode, instantiate
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.model.files import check_text_encoder
from cogvideox.model.image_condition import ImageCondition
from cogvideox.model.video_diffusion import FrozenParts, VideoDiffusion
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.weights.key_rules import shorten
from cogvideox.weights.safetensors_stream import finite_flag

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
) -> VideoDiffusion:
    """Every part, fitted together, and nothing on a device yet: VAE and text encoder are on the CPU, and a transformer
    whose weights follow is nowhere (`meta`). See build_model."""
    # The transformer comes first. SAT makes process groups for it, which takes all processes at once; the other parts
    # read files, which may fail on one machine only: it would not take part, and the others would wait for it.
    node = _network_node(config, checkpoint_activations)
    transformer = _build_empty(node, dtype) if weights_follow else _build_random(node, seed, dtype)
    check_text_encoder(config)
    with _seeded(seed):  # their constructors draw weights too, before the stored ones are loaded
        frozen = FrozenParts(instantiate(config.first_stage_config), instantiate(config.conditioner_config))
    image = image_condition(config)
    _check_fit(transformer, frozen, with_image=image is not None)
    return VideoDiffusion(
        transformer,
        frozen,
        instantiate(config.schedule_config),
        instantiate(config.loss_fn_config),
        scale_factor=config.scale_factor,
        seed=seed,
        samples_at_a_time=config.en_and_decode_n_samples_a_time,
        image=image,
    )


def place_text_encoder(
    model: VideoDiffusion, config: ModelConfig, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Move, cast and check the text encoder of a draft. On a CPU, float16 becomes float32: T5 takes three times as
    long there in float16. Raises: CheckpointError for NaN or infinity in its weights."""
    device = torch.device(device)
    is_slow = device.type == "cpu" and dtype == torch.float16
    model.conditioner.move(device, torch.float32 if is_slow else dtype)
    _check_frozen(model.conditioner, config.conditioner_config)


def place_model(model: VideoDiffusion, config: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> None:
    """Give the other parts of a draft their memory on the device. Raises: CheckpointError as above, for the VAE."""
    device = torch.device(device)
    model.vae.to(device=device, dtype=dtype)
    _check_frozen(model.vae, config.first_stage_config)
    model.vae.fit_convolutions()  # while the transformer's memory is free
    if model.device.type == "meta":
        _make_empty(model, device)
    else:
        model.transformer.to(device)
    model.schedule.move(device)


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


def _check_fit(transformer: DiffusionTransformer, frozen: FrozenParts, *, with_image: bool) -> None:
    """Raises: ConfigError that names the keys of two parts that disagree."""
    network, vae, conditioner = transformer.network, frozen.vae, frozen.conditioner
    text_width = transformer.mixins["patch_embed"].text_hidden_size
    channels, encoder = "first_stage_config z_channels", "the text encoder's"
    pairs = (
        ("patch_embed_config text_hidden_size", text_width, f"{encoder} width", conditioner.width),
        ("network_config text_length", network.text_length, f"{encoder} max_length", conditioner.max_length),
        ("network_config out_channels", network.out_channels, channels, vae.z_channels),
    )
    for ours, our_value, theirs, their_value in pairs:
        if our_value != their_value:
            raise ConfigError(f"model: {ours} is {our_value}, but {theirs} is {their_value}; they must agree")
    needed = vae.z_channels * (2 if with_image else 1)
    if network.in_channels != needed:
        kind = "with noised_image_input" if with_image else "without noised_image_input"
        raise ConfigError(
            f"model: network_config in_channels is {network.in_channels}, but {kind} it must be {needed}; "
            f"{channels} is {vae.z_channels}, and an image-to-video network takes twice as many"
        )
