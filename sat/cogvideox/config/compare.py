"""What changed between two configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogvideox.config.clip_sizes import ROTARY, SINCOS, positions
from cogvideox.config.schema import ModelConfig
from cogvideox.config.signatures import read_signature
from cogvideox.config.targets import is_component
from cogvideox.config.yaml_text import MAX_BYTES, BadYaml, parse_yaml
from cogvideox.errors import ConfigError
from cogvideox.user_files import read_text

# Keys of `model` that don't change what a trained model computes when it samples.
_TRAINING_ONLY = (
    "loss_fn_config",
    "not_trainable_prefixes",
    "lr_scale",
    "latent_input",
    "noised_image_dropout",
    "conditioner_config.params.caption_dropout",
    "network_config.params.checkpoint_activations",
    "network_config.params.offload_activations",
)
_CHOSEN_FREELY = (
    "sampler_config",
    "compile_model",
    "network_config.params.compile_blocks",
    "network_config.params.modules.lora_config",  # checked against the checkpoint, which also stands in for it
    "en_and_decode_n_samples_a_time",
    "first_stage_config.params.encode_chunk_frames",
    "first_stage_config.params.decode_chunk_latent_frames",
    "first_stage_config.params.tile_size",
    "first_stage_config.params.tile_overlap",
    "first_stage_config.params.offload_chunks",
)
_ELSEWHERE = (
    "first_stage_config.params.ckpt_path",
    "conditioner_config.params.encoder.params.model_dir",
    "conditioner_config.params.encoder.params.cache_dir",
    "conditioner_config.params.encoder.params.max_length",  # the network's text_length
)
_WITHOUT_EFFECT = ("log_keys", "input_key", "disable_first_stage_autocast", "noised_image_all_concat")
_NOT_COMPUTED = (*_TRAINING_ONLY, *_CHOSEN_FREELY, *_ELSEWHERE, *_WITHOUT_EFFECT)


def changed_settings(before: Path, after: str) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value before, value after) wherever a run's YAML file and a resolved YAML text differ; None where
    there is none. Raises: ConfigError when the file is no such YAML."""
    try:
        old, _ = parse_yaml(read_text(before, ConfigError, max_bytes=MAX_BYTES))
    except BadYaml as error:
        raise ConfigError(f"{before}: {error}") from error
    new, _ = parse_yaml(after)
    return _changes(old, new)


def changed_computation(trained: ModelConfig, now: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The same for what two models compute from the same weights: `model.` keys, with every default filled in."""
    before, after = _computation(trained), _computation(now)
    omitted = tuple(f"{key}." for key in (*_NOT_COMPUTED, *(_limits(before) & _limits(after))))
    changed = _changes(before, after).items()
    return {f"model.{key}": values for key, values in changed if not f"{key}.".startswith(omitted)}


def _changes(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    old, new = dict(_flat(before)), dict(_flat(after))
    keys = dict.fromkeys([*old, *new])
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _computation(model: ModelConfig) -> dict[str, Any]:
    """The section with values in force, without those that another one leaves unused."""
    tree: dict[str, Any] = _complete(dataclasses.asdict(model))
    if not model.noised_image_input:
        del tree["image_latent_scale"]
    elif model.image_latent_scale is None:
        tree["image_latent_scale"] = model.scale_factor
    network = tree["network_config"]["params"]
    if isinstance(network.get("patch_size"), int):
        network["patch_size"] = [1, network["patch_size"], network["patch_size"]]
    if network.get("ofs_embed_dim") is None:
        network.pop("ofs", None)
    return tree


def _limits(tree: dict[str, Any]) -> set[str]:
    """Keys that only limit the sizes which may be sampled: the positions of a legal size don't depend on them."""
    own = positions(tree["network_config"]["params"])
    params = own.get("params") or {}
    if own.get("target") == ROTARY and (params.get("resize") == "interpolate" or params.get("learnable_pos_embed")):
        return set()
    sizes = {f"network_config.params.{name}" for name in ("num_frames", "latent_height", "latent_width")}
    if own.get("target") == SINCOS:  # where slice has a position, interpolate has the same
        sizes.add("network_config.params.modules.pos_embed_config.params.resize")
    return sizes


def _complete(value: Any) -> Any:
    """Components with the defaults of parameters that were left unwritten; sequences as lists."""
    if isinstance(value, list | tuple):
        return [_complete(item) for item in value]
    if not isinstance(value, dict):
        return value
    if is_component(value):
        params = {**read_signature(value["target"]).defaults, **value["params"]}
        return {"target": value["target"], "params": _complete(params)}
    return {key: _complete(child) for key, child in value.items()}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings; a list is a leaf."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _flat(child, f"{path}.{key}".lstrip("."))
    else:
        yield path, value
