"""From options to what will be converted: everything is found and checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from cogvideox.conversion.differences import has_other_image_scale
from cogvideox.conversion.diffusers_import.config_keys import TRANSFORMER_KEYS, VAE_DEFAULTS, VAE_KEYS
from cogvideox.conversion.diffusers_import.options import Options
from cogvideox.conversion.diffusers_import.settings import patch_size_of, read_settings
from cogvideox.conversion.diffusers_import.source import TRANSFORMER_CLASS, VAE_CLASS, Source, find_source
from cogvideox.conversion.diffusers_import.tables import Computed, computed_tables
from cogvideox.errors import CheckpointError
from cogvideox.weights import transformer_map, vae_map
from cogvideox.weights.base import missing_names
from cogvideox.weights.diffusers_folder import IMAGE_PIPELINE, TEXT_PIPELINE, PipelineSettings
from cogvideox.weights.families import TRANSFORMER_PREFIX, TransformerFacts, read_facts
from cogvideox.weights.key_rules import shorten
from cogvideox.weights.model_folder import ModelFolder, check_same_dtype, read_json, read_model_folder
from cogvideox.weights.safetensors_stream import Entry
from cogvideox.weights.text_encoder_folder import TextEncoderFiles, text_encoder_files

_KEYS = {TRANSFORMER_CLASS: TRANSFORMER_KEYS, VAE_CLASS: VAE_KEYS}
_FIXED_TABLE = "patch_embed.pos_embedding"


@dataclass(frozen=True)
class TransformerPart:
    """The transformer as it is and as it will be. Names of `computed` and of steps' targets are relative SAT names."""

    model: ModelFolder
    facts: TransformerFacts
    steps: list[transformer_map.Step]
    computed: Computed
    entries: list[Entry]  # stored names

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """In the order of `entries`, each made when it is asked for."""
        for name, value in transformer_map.convert_state(self.model.tensors, self.steps):
            yield TRANSFORMER_PREFIX + name, value
        for name, (_, make) in self.computed.items():
            yield TRANSFORMER_PREFIX + name, make()


@dataclass(frozen=True)
class VaePart:
    """The VAE, and SAT's names for diffusers'."""

    model: ModelFolder
    names: dict[str, str]
    entries: list[Entry]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """In the order of `entries`."""
        return ((new, self.model.tensors[old]) for old, new in self.names.items())


@dataclass(frozen=True)
class Plan:
    """What to convert. Parts that are not asked for are None."""

    options: Options
    source: Source
    settings: PipelineSettings
    transformer: TransformerPart | None
    vae: VaePart | None
    vae_config: dict[str, Any]  # of the source's VAE, asked for or not; {} without one
    text_encoder: TextEncoderFiles | None

    @property
    def origin(self) -> str:
        """The source under one name, however it was written: a folder's full path, or a model's name on the hub."""
        is_local = os.path.exists(os.path.expanduser(self.options.source))
        return str(self.source.root) if is_local else self.options.source

    def describe(self) -> list[str]:
        """What will be done, for the user."""
        lines = []
        if self.transformer is not None:
            lines.append(f"transformer: {self.transformer.facts.summary}, from {self.transformer.model.path}")
            zeros = "transformer.position_embeddings.weight"
            if zeros in self.transformer.computed:
                lines.append(f"note: {zeros}, which SAT stores and nothing reads, is written as zeros")
        if has_other_image_scale(self.settings):
            lines.append(
                f"note: the YAML says image_latent_scale {self.settings.image_latent_scale:g}; for weights that were "
                f"trained as diffusers' pipeline runs them set it to {self.settings.pipeline_image_scale:.6g}"
            )
        if self.vae is not None:
            lines.append(f"VAE: {self.vae.model.path}, scale factor {self.settings.scale_factor:g}")
        if self.text_encoder is not None:
            lines.append(f"text encoder: {self.text_encoder.folder}")
        if (self.source.root / "pytorch_lora_weights.safetensors").is_file():
            lines.append("note: the LoRA beside the pipeline is left out: tools/convert_lora.py converts it")
        return lines


def make_plan(options: Options) -> Plan:
    """Find and read the inputs, and check them against each other.

    Raises: CheckpointError, ConfigError.
    """
    source = find_source(options)
    parts = source.parts
    vae_config = _config(source, "vae", VAE_CLASS)
    transformer_config = _config(source, "transformer", TRANSFORMER_CLASS)
    settings = read_settings(source, transformer_config, vae_config)
    transformer = _plan_transformer(options, source, settings) if "transformer" in parts else None
    return Plan(
        options=options,
        source=source,
        settings=settings,
        transformer=transformer,
        vae=_plan_vae(options, source, vae_config) if "vae" in parts else None,
        vae_config=vae_config,
        text_encoder=text_encoder_files(source.folder("text_encoder")) if "text_encoder" in parts else None,
    )


def _config(source: Source, part: str, class_name: str) -> dict[str, Any]:
    """config.json of a part, {} when the source doesn't have it; of the VAE, with diffusers' defaults.

    Raises: CheckpointError for settings that are not computed here.
    """
    file = source.folder(part) / "config.json"
    config = read_json(file) if file.is_file() else {}
    if config.get("_class_name") != class_name:
        return {}
    _KEYS[class_name].check(config, str(file))
    return {**VAE_DEFAULTS, **config} if class_name == VAE_CLASS else config


def _plan_transformer(options: Options, source: Source, settings: PipelineSettings) -> TransformerPart:
    model = read_model_folder(source.folder("transformer"), TRANSFORMER_CLASS)
    config, where = model.config, str(model.path)
    rotary = bool(config.get("use_rotary_positional_embeddings"))
    if not rotary:
        model.tensors.pop(_FIXED_TABLE, None)  # some files of 2B hold it; it is computed
    check_same_dtype(model.tensors, options.dtype, where)
    patch_size = patch_size_of(config)
    steps = transformer_map.to_sat(model.tensors, patch_size)
    shapes = dict(_planned(model, steps))
    kinds = {value.dtype for value in model.tensors.values()}
    dtype = options.dtype or (kinds.pop() if len(kinds) == 1 else torch.float32)
    head_dim = config.get("attention_head_dim", 64)
    hidden_size = config.get("num_attention_heads", 30) * head_dim
    computed = computed_tables(hidden_size, head_dim, patch_size, rotary, settings)
    shapes |= {name: Size(shape) for name, (shape, _) in computed.items()}
    facts = read_facts(shapes, where)
    _check_whole(shapes, where)
    _check_config(config, facts, where)
    _check_pipeline(source, facts)
    entries = [Entry(TRANSFORMER_PREFIX + name, tuple(shape), dtype) for name, shape in shapes.items()]
    return TransformerPart(model, facts, steps, computed, entries)


def _planned(model: ModelFolder, steps: list[transformer_map.Step]) -> Iterator[tuple[str, Size]]:
    """Names and shapes of what the steps will give; nothing is computed."""
    for step in steps:
        yield from zip(step.targets, step.shapes([model.tensors[name].shape for name in step.sources]), strict=True)


def _check_whole(names: Collection[str], where: str) -> None:
    """Raises: CheckpointError that says, in diffusers' names, what is missing."""
    absent = [name for step in transformer_map.to_diffusers(missing_names(names)) for name in step.targets]
    if absent:
        raise CheckpointError(
            f"{where} is not a whole transformer: {len(absent)} tensors are missing: {shorten(absent)}"
        )


def _check_config(config: dict[str, Any], facts: TransformerFacts, where: str) -> None:
    """Raises: CheckpointError when config.json describes another transformer than the weights are."""
    in_weights = {
        "num_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "attention_head_dim": facts.head_dim,
        "in_channels": facts.in_channels,
        "out_channels": facts.out_channels,
        "patch_size_t": facts.patch_size[0] if facts.patch_size[0] > 1 else None,
        "text_embed_dim": facts.text_width,
        "time_embed_dim": facts.time_embed_dim,
        "ofs_embed_dim": facts.ofs_embed_dim,
        "use_learned_positional_embeddings": facts.learned_table,
    }
    wrong = [
        f"{name} {config[name]} (weights: {value})"
        for name, value in in_weights.items()
        if config.get(name, value) != value
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: config.json says {', '.join(wrong)}; the weights are {facts.summary}: take both from one model"
        )


def _check_pipeline(source: Source, facts: TransformerFacts) -> None:
    takes_image = facts.in_channels > facts.out_channels
    if source.pipeline in (TEXT_PIPELINE, IMAGE_PIPELINE) and takes_image != (source.pipeline == IMAGE_PIPELINE):
        raise CheckpointError(f"{source.root} is a {source.pipeline}, but its transformer is {facts.summary}")


def _plan_vae(options: Options, source: Source, config: dict[str, Any]) -> VaePart:
    model = read_model_folder(source.folder("vae"), VAE_CLASS)
    check_same_dtype(model.tensors, options.dtype, str(model.path))
    levels = len(config["block_out_channels"])
    names = {name: vae_map.diffusers_to_sat(name, levels) for name in model.tensors}
    vae_map.check_whole({name: value.shape for name, value in model.tensors.items()}, str(model.path))
    entries = [
        Entry(new, tuple(model.tensors[old].shape), options.dtype or model.tensors[old].dtype)
        for old, new in names.items()
    ]
    return VaePart(model, names, entries)
