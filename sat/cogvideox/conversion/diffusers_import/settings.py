"""What diffusers' configuration files say about a pipeline, as this framework's settings."""

from __future__ import annotations

from typing import Any

from cogvideox.conversion.diffusers_import.config_keys import check_scheduler
from cogvideox.conversion.diffusers_import.source import Source
from cogvideox.released import FAMILIES, Family
from cogvideox.weights.diffusers_folder import PipelineSettings, published_settings
from cogvideox.weights.manifest import CONVERSION_MANIFEST
from cogvideox.weights.model_folder import read_json


def read_settings(source: Source, transformer: dict[str, Any], vae: dict[str, Any]) -> PipelineSettings:
    """The settings; what a lone part doesn't say is that of its released model.

    transformer, vae: their config.json, {} when the source doesn't have them.
    Raises: CheckpointError for a noise schedule that is not computed here.
    """
    family = family_of(transformer)
    default = published_settings(family) if family is not None else PipelineSettings()
    file = source.folder("scheduler") / "scheduler_config.json"
    scheduler: dict[str, Any] = {}
    if source.pipeline is not None and file.is_file():
        scheduler = {"rescale_betas_zero_snr": False, **read_json(file)}  # diffusers' default; the others are ours
        check_scheduler(scheduler, str(file))
    scale_factor = vae.get("scaling_factor", default.scale_factor)
    inverts = bool(vae.get("invert_scale_latents", default.invert_scale_latents))
    return PipelineSettings(
        num_frames=transformer.get("sample_frames", default.num_frames),
        latent_height=transformer.get("sample_height", default.latent_height),
        latent_width=transformer.get("sample_width", default.latent_width),
        text_length=transformer.get("max_text_seq_length", default.text_length),
        temporal_compression=int(transformer.get("temporal_compression_ratio", default.temporal_compression)),
        spatial_interpolation=transformer.get("spatial_interpolation_scale", default.spatial_interpolation),
        temporal_interpolation=transformer.get("temporal_interpolation_scale", default.temporal_interpolation),
        scale_factor=scale_factor,
        shift_scale=scheduler.get("snr_shift_scale", default.shift_scale),
        num_timesteps=scheduler.get("num_train_timesteps", default.num_timesteps),
        beta_start=scheduler.get("beta_start", default.beta_start),
        beta_end=scheduler.get("beta_end", default.beta_end),
        zero_terminal_snr=scheduler.get("rescale_betas_zero_snr", default.zero_terminal_snr),
        vae_norm_groups=vae.get("norm_num_groups", default.vae_norm_groups),
        image_latent_scale=_image_scale(source, family, scale_factor),
        invert_scale_latents=inverts,
    )


def family_of(transformer: dict[str, Any]) -> Family | None:
    """The released model of the same architecture, whatever its size."""
    architecture = (
        bool(transformer.get("use_rotary_positional_embeddings")),
        bool(transformer.get("use_learned_positional_embeddings")),
        patch_size_of(transformer)[0],
        transformer.get("in_channels", 16) > transformer.get("out_channels", 16),
        transformer.get("ofs_embed_dim") is not None,
    )
    return next((family for family in FAMILIES if transformer and family.architecture == architecture), None)


def patch_size_of(transformer: dict[str, Any]) -> tuple[int, int, int]:
    """Frames, height, width."""
    side = transformer.get("patch_size", 2)
    return transformer.get("patch_size_t") or 1, side, side


def _image_scale(source: Source, family: Family | None, scale_factor: float) -> float | None:
    """What our own export says the model was trained with, else what SAT runs the released weights with."""
    if family is None or family.image_latent_scale is None:
        return None
    manifest = source.root / CONVERSION_MANIFEST  # of sat2hf: it says what no configuration of diffusers does
    said = read_json(manifest).get("image_latent_scale") if manifest.is_file() else None
    if isinstance(said, int | float) and not isinstance(said, bool):
        return float(said)
    return scale_factor if family.image_latent_scale == family.scale_factor else family.image_latent_scale
