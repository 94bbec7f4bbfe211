"""From options to what will be converted: everything is found and checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from yaml import safe_load

from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.conversion.differences import FoldedImageScale, check_folding, differences
from cogvideox.conversion.diffusers_export.options import Options
from cogvideox.conversion.diffusers_export.settings import check_claims, read_settings
from cogvideox.conversion.hub import download
from cogvideox.conversion.notes import CLI_DEMO, MODEL_LEFT_OUT
from cogvideox.conversion.yaml_facts import YamlFacts, check_network, with_alpha
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights import vae_map
from cogvideox.weights.base import TransformerWeights, read_transformer
from cogvideox.weights.diffusers_folder import PipelineSettings
from cogvideox.weights.families import TRANSFORMER_PREFIX, TransformerFacts, read_facts
from cogvideox.weights.key_rules import select_prefix
from cogvideox.weights.lora_map import is_adapter
from cogvideox.weights.model_folder import check_same_dtype, read_model_folder
from cogvideox.weights.run_config import trained_config
from cogvideox.weights.sat_folder import SatCheckpoint, find_states_file, read_checkpoint, read_vae
from cogvideox.weights.text_encoder_folder import TextEncoderFiles, text_encoder_files
from cogvideox.weights.transformer_map import to_diffusers

_VAE_IN_ENGINE = "first_stage_model."
_T5_XXL = "models--google--t5-v1_1-xxl"  # where the old converter's cache folder kept it


@dataclass(frozen=True)
class Plan:
    """What to convert. Parts that are not asked for are None."""

    options: Options
    settings: PipelineSettings
    weights: TransformerWeights | None
    facts: TransformerFacts | None
    vae: dict[str, Tensor] | None
    vae_file: Path | None
    text_encoder: TextEncoderFiles | None
    yamls: tuple[Path, ...] = ()  # where the settings come from, included files as well
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype | None:
        return self.options.dtype

    @property
    def text_encoder_dtype(self) -> torch.dtype | None:
        """None: its files are copied."""
        return self.options.dtype if self.options.typecast_text_encoder else None

    @property
    def transformer_state(self) -> Mapping[str, Tensor]:
        """The transformer as it will be written, plain relative SAT names."""
        assert self.weights is not None and self.facts is not None, "a plan without a transformer"
        state = self.weights.merged() if self.options.merge_lora else self.weights.plain
        if self.options.fold_image_scale:
            return FoldedImageScale(state, self.facts, self.settings)
        return state

    @property
    def writes_transformer(self) -> bool:
        return self.options.part in ("pipeline", "transformer")

    @property
    def writes_lora(self) -> bool:
        has_lora = self.weights is not None and self.weights.lora is not None
        return has_lora and not self.options.merge_lora and self.options.part in ("pipeline", "lora")

    def describe(self) -> list[str]:
        """What will be done, for the user."""
        lines = []
        if self.weights is not None and self.facts is not None:
            files = " on ".join(map(str, self.weights.files))
            lines.append(f"transformer: {self.facts.summary}, from {files}")
            if self.weights.lora is not None:
                lora = self.weights.lora
                apart = "kept apart" if self.writes_lora else "left out"
                fate = "merged" if self.options.merge_lora else apart
                lines.append(f"LoRA: rank {lora.rank}, alpha {lora.alpha:g}, {fate}")
        if self.vae_file is not None:
            lines.append(f"VAE: {self.vae_file}, scale factor {self.settings.scale_factor:g}")
        if self.text_encoder is not None:
            lines.append(f"text encoder: {self.text_encoder.folder}")
        notes = [*self.notes, *([CLI_DEMO] if self.writes_lora else [])]
        return lines + [f"note: {note}" for note in notes]


def make_plan(options: Options) -> Plan:
    """Find and read the inputs, and check them against the YAML and the old flags.

    Raises: CheckpointError, ConfigError.
    """
    files = _yaml_files(options)
    yaml = YamlFacts(_read_yaml(options, files))
    weights = facts = checkpoint = None
    if options.checkpoint is not None:
        checkpoint = read_checkpoint(options.checkpoint, options.iteration)
        weights = with_alpha(read_transformer(checkpoint, yaml.num_layers, yaml.base_places), checkpoint, yaml)
        facts = read_facts(weights.plain_shapes, str(weights.files[-1]))
        check_network(yaml, facts, weights.files[0])
        _check_lora(options, weights)
        _check_types(options, weights, facts)
    settings = read_settings(yaml, facts, options)
    check_claims(options, facts, settings)
    folded = options.fold_image_scale
    check_folding(folded, facts)
    vae_file = _find_vae(options, yaml, checkpoint) if options.part in ("pipeline", "vae") else None
    return Plan(
        options=options,
        settings=settings,
        weights=weights,
        facts=facts,
        vae=_read_vae(vae_file, options.dtype) if vae_file is not None else None,
        vae_file=vae_file,
        text_encoder=text_encoder_files(_find_text_encoder(options, yaml)) if options.part == "pipeline" else None,
        yamls=tuple(dict.fromkeys(each for file in files for each in _with_included(file))),
        notes=(*_notes(options, checkpoint), *(differences(yaml, facts, settings, folded=folded) if facts else ())),
    )


def _yaml_files(options: Options) -> list[Path]:
    """The YAML files that were given, or the one that the run's folder holds."""
    if options.base or options.checkpoint is None:
        return [Path(file) for file in options.base]
    states = find_states_file(options.checkpoint, options.iteration)
    beside = trained_config(states)
    return [] if beside is None else [beside]


def _read_yaml(options: Options, files: list[Path]) -> Config | None:
    if not files and options.overrides:
        raise ConfigError(f"{options.overrides[0]} overrides a YAML, but there is none: give --base")
    if not files:
        return None
    return load_config(
        [str(file) for file in files], list(options.overrides), "train", options.allow_unknown, partial=True
    )


def _with_included(file: Path) -> list[Path]:
    """A YAML after the files that it includes; it has been loaded, so that there is no circle."""
    named = (safe_load(file.read_text(encoding="utf-8")) or {}).get("include") or []
    names = [named] if isinstance(named, str) else named
    return [*(each for name in names for each in _with_included(file.parent / name)), file]


def _notes(options: Options, checkpoint: SatCheckpoint | None) -> tuple[str, ...]:
    """What --only lora leaves behind."""
    if checkpoint is None or options.part != "lora":
        return ()
    names = select_prefix(checkpoint.module, TRANSFORMER_PREFIX)
    return () if all(is_adapter(name) for name in names) else (MODEL_LEFT_OUT,)


def _check_lora(options: Options, weights: TransformerWeights) -> None:
    if weights.lora is None and (options.merge_lora or options.part == "lora"):
        flag = "--merge_lora" if options.merge_lora else "--only lora"
        raise CheckpointError(f"{weights.files[0]} holds no LoRA adapters: leave out {flag}")


def _check_types(options: Options, weights: TransformerWeights, facts: TransformerFacts) -> None:
    if options.part in ("pipeline", "transformer"):
        steps = to_diffusers(weights.plain, facts.patch_size)
        written = {step.sources[0]: weights.plain[step.sources[0]] for step in steps}
        check_same_dtype(written, options.dtype, " and ".join(map(str, weights.files)))


def _find_vae(options: Options, yaml: YamlFacts, checkpoint: SatCheckpoint | None) -> Path:
    """--vae, else the VAE inside an old whole-engine checkpoint, else what the YAML names."""
    if options.vae is not None:
        return options.vae
    if checkpoint is not None and any(name.startswith(_VAE_IN_ENGINE) for name in checkpoint.module):
        return checkpoint.path
    if yaml.vae_path is None:
        raise ConfigError("which VAE? give --vae 3d-vae.pt, or --only transformer to leave it out")
    if not yaml.vae_path.exists():
        raise CheckpointError(f"no VAE at {yaml.vae_path} (named by the YAML): give --vae 3d-vae.pt")
    return yaml.vae_path


def _read_vae(file: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The VAE under SAT's names, also from a diffusers folder, which the YAML may name as well."""
    if (file / "config.json").is_file():
        state = read_model_folder(file, "AutoencoderKLCogVideoX").tensors
        vae_map.check_whole({name: value.shape for name, value in state.items()}, str(file))
    else:
        state = read_vae(file)
    check_same_dtype(state, dtype, str(file))
    levels = len({name.split(".")[2] for name in state if name.startswith("encoder.down_blocks.")})
    return {vae_map.diffusers_to_sat(name, levels): value for name, value in state.items()} if levels else state


def _find_text_encoder(options: Options, yaml: YamlFacts) -> Path:
    """--text_encoder, else the old flag's folder or cache, else what the YAML names (folder or hub id)."""
    folder = options.text_encoder or options.text_encoder_cache_dir
    if folder is not None and folder.is_dir():
        snapshots = sorted((folder / _T5_XXL / "snapshots").glob("*/config.json"))
        return snapshots[-1].parent if snapshots else folder
    if folder is not None:
        raise CheckpointError(f"no T5 folder at {folder}")
    name = yaml.text_encoder
    if name is None:
        raise ConfigError("which text encoder? give --text_encoder with a T5 folder, or --only transformer")
    if isinstance(name, Path):
        return name
    failure = f"no T5 folder {name}, and Hugging Face does not give a model of that name"
    return download(name, failure, advice=": give --text_encoder", ignore_patterns=["*.msgpack", "*.h5", "*.md"])
