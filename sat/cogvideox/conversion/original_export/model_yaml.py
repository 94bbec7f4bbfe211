"""Our configuration as YAML of the original program: the table of `config/aliases.py`, read from right to left.

What the original says several times (the noise schedule, the VAE's encoder and decoder) is written several times. A
setting that it doesn't have must have the value that it computes with; any other is an error, not a silent change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogvideox.config.aliases import ALIASES, PUBLISHED_ROTARY, Alias
from cogvideox.config.schema import ModelConfig
from cogvideox.config.signatures import read_signature
from cogvideox.errors import ConfigError
from cogvideox.released import V1_0

Tree = dict[str, Any]
_DIFFUSION = "sgm.modules.diffusionmodules."
_TARGETS: dict[str, tuple[str, Alias]] = {
    alias.target: (published, alias) for published, alias in ALIASES.items() if alias.target is not None
}
# Our settings that the original doesn't have. A value: the one with which it computes. FREE: of how something is
# computed (memory, time), not of what.
FREE = object()
_OURS: dict[str, Any] = {
    "compile_blocks": FREE,
    "guidance_batch": FREE,
    "cache_dir": FREE,
    "encode_chunk_frames": FREE,
    "decode_chunk_latent_frames": FREE,
    "tile_size": FREE,
    "tile_overlap": FREE,
    "offload_chunks": FREE,
    "resize": "slice",
    "spacing": "trailing",
    "linear_steps": None,
    "by": "timestep",
    "zero_terminal_snr": True,
    "norm_num_groups": 32,
    "ofs": 2.0,
}
_INTERPOLATION = ("time_interpolation", "height_interpolation", "width_interpolation")


def published_model(model: ModelConfig, text_encoder: Path | str, vae: Path | str, *, flat_patch: bool = False) -> Tree:
    """The section `model` as the original reads it.

    Args:
        text_encoder, vae: where the T5 folder and 3d-vae.pt are.
        flat_patch: whether the weight of a 1.0 model's patches has two axes, not the four of a convolution.

    Raises: ConfigError for a setting with which the original would compute something else.
    """
    schedule = _component("schedule_config", model.schedule_config)
    loss = _component("loss_fn_config", model.loss_fn_config)
    stratified = loss["params"].pop("stratified_timesteps", False)
    loss["params"]["offset_noise_level"] = 0.0
    loss["params"]["sigma_sampler_config"] = {
        "target": f"{_DIFFUSION}sigma_sampling.DiscreteSampling",
        "params": {
            "uniform_sampling": stratified,
            "num_idx": schedule["params"].get("num_timesteps", 1000),
            "discretization_config": schedule,
        },
    }
    sampler = _component("sampler_config", model.sampler_config)
    sampler["params"] |= {"verbose": True, "discretization_config": schedule}
    if sampler["params"].get("guider_config") is None:
        raise ConfigError("model.sampler_config: it has no guidance, and the original needs one: ConstantGuidance, 1.0")
    network = _network(model.network_config, flat_patch)
    tree: Tree = {
        "scale_factor": model.scale_factor,
        "disable_first_stage_autocast": model.disable_first_stage_autocast,
        "not_trainable_prefixes": list(model.not_trainable_prefixes),
        "log_keys": ["txt"],
        **_image_input(model, network),
    }
    for key in ("lr_scale", "en_and_decode_n_samples_a_time"):
        if getattr(model, key) is not None:
            tree[key] = getattr(model, key)
    return tree | {
        "denoiser_config": {
            "target": f"{_DIFFUSION}denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": schedule["params"].get("num_timesteps", 1000),
                "quantize_c_noise": False,
                "weighting_config": {"target": f"{_DIFFUSION}denoiser_weighting.EpsWeighting"},
                "scaling_config": {"target": f"{_DIFFUSION}denoiser_scaling.VideoScaling"},
                "discretization_config": schedule,
            },
        },
        "network_config": network,
        "conditioner_config": _conditioner(model.conditioner_config, str(text_encoder)),
        "first_stage_config": _vae(model.first_stage_config, str(vae)),
        "loss_fn_config": loss,
        "sampler_config": sampler,
    }


def _component(place: str, node: Mapping[str, Any]) -> Tree:
    """One component under its published name, with the parameters that the original has, and a guidance below it."""
    target = node["target"]
    if target not in _TARGETS:
        raise ConfigError(f"model.{place}: the original program has no counterpart of {target}")
    published, alias = _TARGETS[target]
    names = {ours: theirs for theirs, ours in alias.rename.items()}
    defaults = read_signature(target).defaults
    params: Tree = {}
    for name, value in {**_pinned(defaults), **(node.get("params") or {})}.items():
        if value is None and defaults.get(name, ...) is None:
            continue  # not used; old versions of the original don't know some of these names
        if name not in _OURS:
            below = isinstance(value, dict) and "target" in value
            written = _component(f"{place}.params.{name}", value) if below else _plain(value)
            params[names.get(name, name)] = written
        elif _OURS[name] is not FREE and value != _OURS[name]:
            raise ConfigError(
                f"model.{place}.params.{name} is {value}, and the original computes with {_OURS[name]} only: its "
                "videos would differ"
            )
    return {"target": published, "params": params}


def _pinned(defaults: Mapping[str, Any]) -> Tree:
    """Defaults that stand in the file as well: the two programs' own differ for some."""
    return {name: value for name, value in defaults.items() if name == "shift_scale"}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value > 1 and value.is_integer():
        return int(value)  # as published files say an exponent of 5 or a theta of 10000
    return list(value) if isinstance(value, tuple) else value


def _network(node: Mapping[str, Any], flat_patch: bool) -> Tree:
    params = dict(node["params"])
    modules = params.pop("modules", None) or {}
    checkpointed = params.pop("checkpoint_activations", False)
    network = _component("network_config", {**node, "params": params})
    written = network["params"]
    patch = written.get("patch_size", 2)
    if isinstance(patch, list) and patch[0] == 1 and patch[1] == patch[2] and not flat_patch:
        written["patch_size"] = patch[1]  # a number makes a convolution there, a list a linear layer
    positions = _positions(modules.get("pos_embed_config") or {}, written)
    others = {
        slot: _component(f"network_config.params.modules.{slot}", module)
        for slot, module in modules.items()
        if slot != "pos_embed_config" and module is not None
    }
    written["elementwise_affine"] = True
    written["adm_in_channels"] = 256
    written["transformer_args"] = {
        "checkpoint_activations": checkpointed,
        "vocab_size": 1,
        "max_sequence_length": 64,
        "layernorm_order": "pre",
        "skip_init": False,
        "model_parallel_size": 1,
        "is_decoder": False,
    }
    written["modules"] = {"pos_embed_config": positions, **others}
    return network


def _positions(node: Mapping[str, Any], network: Tree) -> Tree:
    """The positions' node; text_length goes from the network to it, and 1.5's factors from it to the network."""
    place = "network_config.params.modules.pos_embed_config"
    positions = _component(place, node)
    params = positions["params"]
    params["text_length"] = network.pop("text_length", V1_0.text_length)
    if positions["target"] != PUBLISHED_ROTARY:
        return positions
    for name in _INTERPOLATION:
        if (factor := params.pop(name, 1.0)) != 1.0:
            raise ConfigError(
                f"model.{place}.params.{name} is {factor}: the original's rotary positions don't apply it"
            )
    params["hidden_size_head"] = network["hidden_size"] // network["num_attention_heads"]
    if _is_newer(network):
        network.update(dict.fromkeys(_INTERPOLATION, 1.0))
    return positions


def _is_newer(network: Mapping[str, Any]) -> bool:
    """Whether it is a 1.5 model: its patches hold two latent frames."""
    patch = network.get("patch_size")
    return isinstance(patch, list) and patch[0] > 1


def _image_input(model: ModelConfig, network: Tree) -> Tree:
    """What image-to-video models say. Raises: ConfigError for another scale of the image latent than the original's."""
    if not model.noised_image_input:
        return {}
    newer = _is_newer(network["params"])
    theirs = 1.0 if newer else model.scale_factor
    ours = model.scale_factor if model.image_latent_scale is None else model.image_latent_scale
    if abs(ours - theirs) > 1e-6:
        raise ConfigError(
            f"model.image_latent_scale is {ours:g}; the original samples {'1.5' if newer else '1.0'} with {theirs:g}, "
            "and its videos would differ"
        )
    return {
        "latent_input": False,
        "noised_image_input": True,
        "noised_image_all_concat": False,
        "noised_image_dropout": model.noised_image_dropout,
    }


def _conditioner(node: Mapping[str, Any], text_encoder: str) -> Tree:
    conditioner = _component("conditioner_config", node)
    params = conditioner["params"]
    encoder = params.pop("encoder")
    encoder["params"]["model_dir"] = text_encoder
    dropout = params.pop("caption_dropout", read_signature(node["target"]).defaults["caption_dropout"])
    params["emb_models"] = [{"is_trainable": False, "input_key": "txt", "ucg_rate": dropout, **encoder}]
    return conditioner


def _vae(node: Mapping[str, Any], file: str) -> Tree:
    vae = _component("first_stage_config", node)
    sizes = {**{n: _plain(v) for n, v in read_signature(node["target"]).defaults.items()}, **vae["params"]}
    coder = {
        "double_z": True,
        "resolution": 256,
        "attn_resolutions": [],
        "dropout": 0.0,
        "out_ch": sizes["out_channels"],
        **{name: sizes[name] for name in ("z_channels", "in_channels", "ch", "ch_mult", "num_res_blocks")},
    }
    if sizes["temporal_compression"] != 4:
        coder["temporal_compress_times"] = sizes["temporal_compression"]
    room = "vae_modules."
    vae["params"] = {
        "cp_size": 1,
        "ckpt_path": file,
        "ignore_keys": ["loss"],
        "loss_config": {"target": "torch.nn.Identity"},
        "regularizer_config": {"target": f"{room}regularizers.DiagonalGaussianRegularizer"},
        "encoder_config": {
            "target": f"{room}cp_enc_dec.ContextParallelEncoder3D",
            "params": {**coder, "gather_norm": True},
        },
        "decoder_config": {
            "target": f"{room}cp_enc_dec.ContextParallelDecoder3D",
            "params": {**coder, "gather_norm": False},
        },
    }
    return vae
