"""The folders that diffusers opens: transformer/, vae/, scheduler/, model_index.json.

Everything is written into a folder that the caller made with `atomic.begin_folder`; nothing here imports
diffusers. Sizes come from the tensors' shapes; what no shape says comes in `PipelineSettings`, from the YAML.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from cogvideox.errors import CheckpointError
from cogvideox.geometry import Geometry
from cogvideox.released import COGVIDEOX_2B, V1_0, Family
from cogvideox.weights import transformer_map, vae_map
from cogvideox.weights.families import TransformerFacts
from cogvideox.weights.model_folder import WEIGHTS_STEM
from cogvideox.weights.safetensors_stream import MAX_SHARD_BYTES, Entry, WrittenFile, write_model

DIFFUSERS_VERSION = "0.34.0"  # the first release that reads a LoRA's alpha from its file
DDIM_SCHEDULER, DPM_SCHEDULER = "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"
TEXT_PIPELINE, IMAGE_PIPELINE = "CogVideoXPipeline", "CogVideoXImageToVideoPipeline"
SAME_SCALE = 1e-4  # relative; scales come through text, rounded


@dataclass(frozen=True)
class PipelineSettings:
    """What a pipeline needs and no tensor says. The defaults are those of CogVideoX-2B."""

    num_frames: int = V1_0.clip.frames  # pixel frames of a training clip
    latent_height: int = V1_0.latent_height
    latent_width: int = V1_0.latent_width
    text_length: int = V1_0.text_length
    temporal_compression: int = 4
    spatial_interpolation: float = 1.875
    temporal_interpolation: float = 1.0
    scale_factor: float = COGVIDEOX_2B.scale_factor
    shift_scale: float = COGVIDEOX_2B.shift_scale
    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    vae_norm_groups: int = 32
    scheduler: str = DDIM_SCHEDULER
    image_latent_scale: float | None = None  # what an image-to-video model was trained with; None without image
    invert_scale_latents: bool = False  # whether its pipeline divides the image latent by scale_factor

    @property
    def pipeline_image_scale(self) -> float:
        """What diffusers' image-to-video pipeline multiplies the first frame's latent by."""
        return 1 / self.scale_factor if self.invert_scale_latents else self.scale_factor


def published_settings(family: Family) -> PipelineSettings:
    """The settings of a released model."""
    generation = family.generation
    return PipelineSettings(
        num_frames=generation.clip.frames,
        latent_height=generation.latent_height,
        latent_width=generation.latent_width,
        text_length=generation.text_length,
        scale_factor=family.scale_factor,
        shift_scale=family.shift_scale,
        image_latent_scale=family.image_latent_scale,
        invert_scale_latents=inverts_scale(generation.frames_per_patch, family.scale_factor, family.image_latent_scale),
    )


def inverts_scale(frames_per_patch: int, scale_factor: float, image_latent_scale: float | None) -> bool:
    """What `invert_scale_latents` has to be: diffusers knows only scale_factor and its inverse.

    A scale that is neither keeps the released value, which is true for CogVideoX 1.5.
    """
    for value, scale in ((False, scale_factor), (True, 1 / scale_factor)):
        if image_latent_scale is not None and math.isclose(image_latent_scale, scale, rel_tol=SAME_SCALE):
            return value
    return frames_per_patch > 1


def transformer_config(facts: TransformerFacts, settings: PipelineSettings) -> dict[str, Any]:
    """config.json of CogVideoXTransformer3DModel.

    Raises: CheckpointError for patches that aren't square, or a learned table for another clip size.
    """
    frames, height, width = facts.patch_size
    if height != width:
        raise CheckpointError(f"diffusers takes square patches only; this transformer's are {height} x {width}")
    _check_learned_table(facts, settings)
    config = {
        "_class_name": "CogVideoXTransformer3DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": facts.head_dim,
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": facts.in_channels,
        "max_text_seq_length": settings.text_length,
        "norm_elementwise_affine": True,
        "norm_eps": 1e-05,
        "num_attention_heads": facts.num_heads,
        "num_layers": facts.num_layers,
        "out_channels": facts.out_channels,
        "patch_size": height,
        "sample_frames": settings.num_frames,
        "sample_height": settings.latent_height,
        "sample_width": settings.latent_width,
        "spatial_interpolation_scale": settings.spatial_interpolation,
        "temporal_compression_ratio": settings.temporal_compression,
        "temporal_interpolation_scale": settings.temporal_interpolation,
        "text_embed_dim": facts.text_width,
        "time_embed_dim": facts.time_embed_dim,
        "timestep_activation_fn": "silu",
        "use_learned_positional_embeddings": facts.learned_table,
        "use_rotary_positional_embeddings": facts.rotary,
    }
    if frames > 1:
        # The released files say patch_bias false and hold a bias all the same; diffusers reads the key for 1.0 only.
        config |= {"patch_size_t": frames, "patch_bias": True}
    if facts.ofs_embed_dim is not None:
        config["ofs_embed_dim"] = facts.ofs_embed_dim
    return config


def _check_learned_table(facts: TransformerFacts, settings: PipelineSettings) -> None:
    """diffusers' table has exactly the tokens of sample_frames, sample_height and sample_width."""
    geometry = Geometry(settings.temporal_compression, patch_size=facts.patch_size)
    frames = geometry.latent_frames(settings.num_frames)
    grid = math.prod(geometry.token_grid(frames, settings.latent_height, settings.latent_width))
    if facts.learned_table and facts.table_length != settings.text_length + grid:
        raise CheckpointError(
            f"the learned position table has {facts.table_length} tokens; {settings.num_frames} frames of latents "
            f"{settings.latent_height} x {settings.latent_width} and {settings.text_length} text tokens make "
            f"{settings.text_length + grid}: give the YAML that it was trained with"
        )


def vae_config(shapes: Mapping[str, Size], settings: PipelineSettings) -> dict[str, Any]:
    """config.json of AutoencoderKLCogVideoX, from the shapes under SAT's names."""
    widths = _vae_widths(shapes)
    blocks = {name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}
    if any(width % settings.vae_norm_groups for width in widths):
        raise CheckpointError(f"the VAE's widths {widths} don't divide into {settings.vae_norm_groups} norm groups")
    return {
        "_class_name": "AutoencoderKLCogVideoX",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["CogVideoXDownBlock3D"] * len(widths),
        "force_upcast": True,
        "in_channels": shapes["encoder.conv_in.conv.weight"][1],
        "invert_scale_latents": settings.invert_scale_latents,
        "latent_channels": shapes["decoder.conv_in.conv.weight"][1],
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": len(blocks),
        "norm_eps": 1e-06,
        "norm_num_groups": settings.vae_norm_groups,
        "out_channels": shapes["decoder.conv_out.conv.weight"][0],
        "sample_height": settings.latent_height * 2 ** (len(widths) - 1),
        "sample_width": settings.latent_width * 2 ** (len(widths) - 1),
        "scaling_factor": settings.scale_factor,
        "shift_factor": None,
        "temporal_compression_ratio": settings.temporal_compression,
        "up_block_types": ["CogVideoXUpBlock3D"] * len(widths),
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def _vae_widths(shapes: Mapping[str, Size]) -> list[int]:
    """Output channels of each level, outermost first."""
    needed = ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight", "decoder.conv_out.conv.weight")
    absent = [name for name in needed if name not in shapes]
    pattern = re.compile(r"encoder\.down\.(\d+)\.block\.0\.conv1\.conv\.weight")
    found = {int(match.group(1)): shapes[name][0] for name in shapes if (match := pattern.fullmatch(name))}
    if absent or sorted(found) != list(range(len(found))) or not found:
        raise CheckpointError(f"not a CogVideoX VAE: no {absent[0] if absent else 'encoder.down.*'}")
    return [found[level] for level in range(len(found))]


def scheduler_config(settings: PipelineSettings) -> dict[str, Any]:
    """scheduler_config.json of either CogVideoX scheduler."""
    return {
        "_class_name": settings.scheduler,
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": settings.beta_end,
        "beta_schedule": "scaled_linear",
        "beta_start": settings.beta_start,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "num_train_timesteps": settings.num_timesteps,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": settings.zero_terminal_snr,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "snr_shift_scale": settings.shift_scale,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
        "trained_betas": None,
    }


def pipeline_class(facts: TransformerFacts) -> str:
    """Name of the pipeline that runs such a transformer."""
    return IMAGE_PIPELINE if facts.in_channels > facts.out_channels else TEXT_PIPELINE


def model_index(
    settings: PipelineSettings, tokenizer_class: str = "T5Tokenizer", pipeline: str = "CogVideoXPipeline"
) -> dict[str, Any]:
    """model_index.json of a pipeline."""
    return {
        "_class_name": pipeline,
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", settings.scheduler],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }


def transformer_entries(
    shapes: Mapping[str, tuple[Size, torch.dtype]], facts: TransformerFacts, dtype: torch.dtype | None
) -> list[Entry]:
    """What `write_transformer` will write; nothing is computed. `shapes` has plain relative SAT names."""
    entries = []
    for step in transformer_map.to_diffusers(shapes, facts.patch_size):
        kind = dtype or shapes[step.sources[0]][1]
        targets = step.shapes([shapes[name][0] for name in step.sources])
        entries += [Entry(name, tuple(shape), kind) for name, shape in zip(step.targets, targets, strict=True)]
    return entries


def write_transformer(
    folder: Path,
    state: Mapping[str, Tensor],
    entries: list[Entry],
    config: Mapping[str, Any],
    facts: TransformerFacts,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[WrittenFile]:
    """Stream a transformer (plain relative SAT names; may be `lora_map.MergedWeights`) into `folder`.

    Raises: CheckpointError for an unknown name, a value beyond the dtype, or a full disk.
    """
    steps = transformer_map.to_diffusers(state, facts.patch_size)
    write_json(folder / "config.json", config)
    tensors = transformer_map.convert_state(state, steps)
    return write_model(folder, WEIGHTS_STEM, entries, tensors, max_shard_bytes=max_shard_bytes)


def write_vae(
    folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype | None
) -> list[WrittenFile]:
    """Stream a VAE (SAT names, as `sat_folder.read_vae` gives them) into `folder`.

    Raises: CheckpointError for an unknown name, a value beyond the dtype, or a full disk.
    """
    levels = len(config["block_out_channels"])
    names = {name: vae_map.sat_to_diffusers(name, levels) for name in state}
    write_json(folder / "config.json", config)
    return write_model(folder, WEIGHTS_STEM, _entries(state, names, dtype), _renamed(state, names))


def _entries(state: Mapping[str, Tensor], names: Mapping[str, str], dtype: torch.dtype | None) -> list[Entry]:
    return [Entry(new, tuple(state[old].shape), dtype or state[old].dtype) for old, new in names.items()]


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    return ((new, state[old]) for old, new in names.items())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a configuration file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")
