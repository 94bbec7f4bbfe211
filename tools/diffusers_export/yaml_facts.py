"""What the YAML says about a model, compared with what its checkpoint says and what old flags claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.config.schema import Config
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.diffusers_folder import PipelineSettings
from cogvideox.weights.families import TransformerFacts

from diffusers_export.options import Options

ROOT = Path(__file__).resolve().parents[2]
_SAME = 1e-6  # relative; numbers come through text


@dataclass(frozen=True)
class YamlFacts:
    """Access to the parts of a configuration that matter here. Without one, everything is unknown."""

    config: Config | None

    @property
    def network(self) -> Mapping[str, Any]:
        return self.config.model.network_config["params"] if self.config is not None else {}

    @property
    def vae(self) -> Mapping[str, Any]:
        return self.config.model.first_stage_config["params"] if self.config is not None else {}

    @property
    def schedule(self) -> Mapping[str, Any]:
        return self.config.model.schedule_config["params"] if self.config is not None else {}

    @property
    def num_layers(self) -> int | None:
        return self.network.get("num_layers")

    @property
    def lora_alpha(self) -> float | None:
        """None when the YAML doesn't state it."""
        alpha = self.module("lora_config").get("lora_alpha")
        return None if alpha is None else float(alpha)

    @property
    def vae_path(self) -> Path | None:
        path = self.vae.get("ckpt_path")
        return _find(path) if path else None

    @property
    def text_encoder(self) -> Path | str | None:
        """A folder that exists, or what may be a Hugging Face id."""
        if self.config is None:
            return None
        encoder = self.config.model.conditioner_config["params"].get("encoder") or {}
        name = (encoder.get("params") or {}).get("model_dir")
        return _find(name) if name and _find(name).is_dir() else name

    def module(self, name: str) -> Mapping[str, Any]:
        """Parameters of one entry of the network's `modules`."""
        node = (self.network.get("modules") or {}).get(name) or {}
        return node.get("params") or {}


def _find(path: str) -> Path:
    """A path from a YAML: relative to where the command runs, else to the repository, as the shipped files are."""
    here, there = Path(path).expanduser(), ROOT / path
    return there if there.exists() and not here.exists() else here


def read_settings(yaml: YamlFacts, facts: TransformerFacts | None, options: Options) -> PipelineSettings:
    """The settings from the YAML; without one, those of the published model that the checkpoint is.

    Raises: ConfigError when there is no YAML and the checkpoint is no published model, or diffusers can't
        express what the YAML says.
    """
    if yaml.config is not None and yaml.network:
        return _from_yaml(yaml)
    published = PipelineSettings()
    if facts is not None and not _is_published(facts, published):
        raise ConfigError(
            f"{options.checkpoint} holds {facts.summary}; which sizes it was trained at, no tensor says: "
            "give its YAML with --base"
        )
    return published


def _from_yaml(yaml: YamlFacts) -> PipelineSettings:
    network, positions, schedule = yaml.network, yaml.module("pos_embed_config"), yaml.schedule
    height, width = (positions.get(f"{axis}_interpolation", 1.0) for axis in ("height", "width"))
    if height != width:
        raise ConfigError(f"height_interpolation {height} and width_interpolation {width} differ: diffusers has one")
    assert yaml.config is not None, "settings from a YAML need one"
    default = PipelineSettings()
    return PipelineSettings(
        num_frames=network.get("num_frames", default.num_frames),
        latent_height=network.get("latent_height", default.latent_height),
        latent_width=network.get("latent_width", default.latent_width),
        text_length=network.get("text_length", default.text_length),
        temporal_compression=network.get("temporal_compression", default.temporal_compression),
        spatial_interpolation=height,
        temporal_interpolation=positions.get("time_interpolation", 1.0),
        scale_factor=yaml.config.model.scale_factor,
        shift_scale=schedule.get("shift_scale", default.shift_scale),
        num_timesteps=schedule.get("num_timesteps", default.num_timesteps),
        beta_start=schedule.get("beta_start", default.beta_start),
        beta_end=schedule.get("beta_end", default.beta_end),
        zero_terminal_snr=schedule.get("zero_terminal_snr", default.zero_terminal_snr),
        vae_norm_groups=yaml.vae.get("norm_num_groups", default.vae_norm_groups),
    )


def _is_published(facts: TransformerFacts, settings: PipelineSettings) -> bool:
    """Whether the checkpoint is a published model at its published clip size."""
    _, patch_height, patch_width = facts.patch_size
    frames = (settings.num_frames - 1) // settings.temporal_compression + 1
    grid = frames * (settings.latent_height // patch_height) * (settings.latent_width // patch_width)
    return facts.family is not None and facts.table_length in (None, settings.text_length + grid)


def check_network(yaml: YamlFacts, facts: TransformerFacts, source: Path) -> None:
    """Raises: ConfigError when the YAML describes another network than the checkpoint holds."""
    in_checkpoint = {
        "hidden_size": facts.hidden_size,
        "num_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "in_channels": facts.in_channels,
        "time_embed_dim": facts.time_embed_dim,
        "text_hidden_size": facts.text_width,
    }
    stated = {**yaml.module("patch_embed_config"), **yaml.network}
    wrong = [
        f"{name} {stated[name]} (checkpoint: {value})"
        for name, value in in_checkpoint.items()
        if stated.get(name, value) != value
    ]
    if wrong:
        advice = f": use {facts.family.yaml}" if facts.family is not None else ""
        raise ConfigError(f"{source} holds {facts.summary}, but the YAML says {', '.join(wrong)}{advice}")


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
