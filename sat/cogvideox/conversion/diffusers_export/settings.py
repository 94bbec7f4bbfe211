"""The settings of the pipeline: from the YAML, from the released model that a checkpoint is, or from old flags."""

from __future__ import annotations

import math
from dataclasses import replace

from cogvideox.conversion.diffusers_export.options import Options
from cogvideox.conversion.yaml_facts import THETA, YamlFacts
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.geometry import Geometry
from cogvideox.released import FAMILIES, V1_0, V1_5, Family
from cogvideox.weights.diffusers_folder import PipelineSettings, inverts_scale, published_settings
from cogvideox.weights.families import TransformerFacts

_SAME = 1e-6  # relative; numbers come through text


def read_settings(yaml: YamlFacts, facts: TransformerFacts | None, options: Options) -> PipelineSettings:
    """The settings from the YAML; without one, those of the published model that the checkpoint is.

    Raises: ConfigError when there is no YAML and the checkpoint is no published model, or is a VAE alone and no old
        flag says which, or when diffusers can't express what the YAML says.
    """
    if yaml.config is not None and yaml.network:
        return _from_yaml(yaml, facts)
    if facts is None:
        return published_settings(_claimed_family(options))
    if facts.family is None or not _has_published_table(facts):
        raise ConfigError(
            f"{options.checkpoint} holds {facts.summary}; which sizes it was trained at, no tensor says: "
            "give its YAML with --base"
        )
    return published_settings(facts.family)


def _claimed_family(options: Options) -> Family:
    """The published model that a VAE without YAML belongs to, by the old flags; no tensor of a VAE says.

    Raises: ConfigError when they leave the scale open: that of 1.0 is 2B's or 5B's.
    """
    generation = V1_5 if options.version == V1_5.version else V1_0
    scale = options.scaling_factor
    if scale is None and generation is V1_0:
        raise ConfigError(
            "no tensor of a VAE says which scale its latents have: give --base with the model's YAML, or "
            "--scaling_factor (2B: 1.15258426, all others: 0.7) and --version"
        )
    candidates = [family for family in FAMILIES if family.generation is generation and not family.image_input]
    nearest = min(candidates, key=lambda family: abs(family.scale_factor - (scale or family.scale_factor)))
    shift = options.snr_shift_scale
    return replace(
        nearest,
        scale_factor=nearest.scale_factor if scale is None else scale,
        shift_scale=nearest.shift_scale if shift is None else shift,
    )


def _from_yaml(yaml: YamlFacts, facts: TransformerFacts | None) -> PipelineSettings:
    network, schedule = yaml.network, yaml.schedule
    assert yaml.config is not None, "settings from a YAML need one"
    model, default = yaml.config.model, PipelineSettings()
    spatial, temporal = _interpolation(yaml)
    patch = facts.patch_size if facts is not None else yaml.patch_size or (1, 2, 2)
    image_scale = (model.image_latent_scale or model.scale_factor) if model.noised_image_input else None
    return PipelineSettings(
        num_frames=network.get("num_frames", default.num_frames),
        latent_height=network.get("latent_height", default.latent_height),
        latent_width=network.get("latent_width", default.latent_width),
        text_length=network.get("text_length", default.text_length),
        temporal_compression=network.get("temporal_compression", default.temporal_compression),
        spatial_interpolation=spatial,
        temporal_interpolation=temporal,
        scale_factor=model.scale_factor,
        shift_scale=schedule.get("shift_scale", default.shift_scale),
        num_timesteps=schedule.get("num_timesteps", default.num_timesteps),
        beta_start=schedule.get("beta_start", default.beta_start),
        beta_end=schedule.get("beta_end", default.beta_end),
        zero_terminal_snr=schedule.get("zero_terminal_snr", default.zero_terminal_snr),
        vae_norm_groups=yaml.vae.get("norm_num_groups", default.vae_norm_groups),
        image_latent_scale=image_scale,
        invert_scale_latents=inverts_scale(patch[0], model.scale_factor, image_scale),
    )


def _interpolation(yaml: YamlFacts) -> tuple[float, float]:
    """Spatial and temporal factor. Rotary models have none in diffusers, whose configs say 1.875 and 1 all the same."""
    positions, default = yaml.module("pos_embed_config"), PipelineSettings()
    time, height, width = (positions.get(f"{axis}_interpolation", 1.0) for axis in ("time", "height", "width"))
    if height != width:
        raise ConfigError(f"height_interpolation {height} and width_interpolation {width} differ: diffusers has one")
    if not yaml.rotary:
        return height, time
    theta = positions.get("theta", THETA)
    if (time, height, theta) != (1.0, 1.0, THETA):
        raise ConfigError(
            f"pos_embed_config has theta {theta:g} and interpolation factors {time:g} (time), {height:g} (height and "
            f"width): diffusers' rotary positions have theta {THETA:g} and no factors"
        )
    return default.spatial_interpolation, default.temporal_interpolation


def _has_published_table(facts: TransformerFacts) -> bool:
    """Whether a published model's position table, if any, is for its published clip size."""
    family = facts.family
    assert family is not None, "not a published model"
    geometry = Geometry(patch_size=facts.patch_size)
    generation = family.generation
    frames = geometry.latent_frames(generation.clip.frames)
    grid = math.prod(geometry.token_grid(frames, generation.latent_height, generation.latent_width))
    return facts.table_length in (None, generation.text_length + grid)


def check_claims(options: Options, facts: TransformerFacts | None, settings: PipelineSettings) -> None:
    """Raises: CheckpointError when an old flag contradicts the checkpoint or its YAML."""
    found: list[tuple[str, object, object]] = [
        ("--scaling_factor", options.scaling_factor, settings.scale_factor),
        ("--snr_shift_scale", options.snr_shift_scale, settings.shift_scale),
    ]
    if facts is not None:
        found += [
            ("--num_layers", options.num_layers, facts.num_layers),
            ("--num_attention_heads", options.num_attention_heads, facts.num_heads),
            ("--use_rotary_positional_embeddings", options.rotary or None, facts.rotary),
            ("--i2v", options.i2v or None, facts.in_channels > facts.out_channels),
            ("--version", options.version, "1.5" if facts.patch_size[0] > 1 else "1.0"),
        ]
    for flag, claimed, actual in found:
        if claimed is not None and not _equal(claimed, actual):
            shown = flag if claimed is True else f"{flag} {claimed}"
            what = facts.summary if facts is not None else "these weights"
            value = "does not apply" if claimed is True else f"is {actual}"
            raise CheckpointError(f"{shown} contradicts the checkpoint ({what}): it {value}; leave the flag out")


def _equal(claimed: object, actual: object) -> bool:
    if isinstance(claimed, float) and isinstance(actual, float | int):
        return abs(claimed - actual) <= _SAME * max(1.0, abs(actual))
    return claimed == actual
