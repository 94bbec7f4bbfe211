"""What the YAML says about a model, and whether its checkpoint says the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cogvideox import commands
from cogvideox.config.schema import Config
from cogvideox.errors import ConfigError
from cogvideox.weights.base import TransformerWeights
from cogvideox.weights.families import TransformerFacts
from cogvideox.weights.sat_folder import SatCheckpoint

THETA = 10000.0  # of diffusers' rotary positions


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
    def load_path(self) -> Path | None:
        """What the run was started from."""
        path = self.config.args.load if self.config is not None else None
        return _find(path) if path else None

    @property
    def base_places(self) -> list[Path]:
        """Where the base of a LoRA may be now, if it was moved."""
        args = self.config.args if self.config is not None else None
        return [_find(path) for path in (args.base_model, args.load) if path] if args is not None else []

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

    @property
    def rotary(self) -> bool | None:
        """Whether the positions are rotary."""
        target = self._node("pos_embed_config").get("target")
        return None if target is None else "Rotary" in target

    @property
    def patch_size(self) -> tuple[int, ...] | None:
        """Frames, height, width; 2 in a YAML stands for (1, 2, 2)."""
        size = self.network.get("patch_size")
        return (1, size, size) if isinstance(size, int) else None if size is None else tuple(size)

    def module(self, name: str) -> Mapping[str, Any]:
        """Parameters of one entry of the network's `modules`."""
        return self._node(name).get("params") or {}

    def _node(self, name: str) -> Mapping[str, Any]:
        return (self.network.get("modules") or {}).get(name) or {}


def _find(path: str) -> Path:
    """A path from a YAML: relative to where the command runs, else to the repository, as the shipped files are."""
    here, there = Path(os.path.expanduser(path)), commands.ROOT / path
    return there if there.exists() and not here.exists() else here


def with_alpha(weights: TransformerWeights, checkpoint: SatCheckpoint, yaml: YamlFacts) -> TransformerWeights:
    """Take lora_alpha from the YAML where the checkpoint, being old, doesn't state it.

    Raises: ConfigError when both state it and differ.
    """
    if weights.lora is None or yaml.lora_alpha is None or yaml.lora_alpha == weights.lora.alpha:
        return weights
    if checkpoint.extra.get("lora"):
        raise ConfigError(
            f"{checkpoint.path} was trained with lora_alpha {weights.lora.alpha:g}, the YAML says "
            f"{yaml.lora_alpha:g}: set lora_config.params.lora_alpha to {weights.lora.alpha:g}"
        )
    return replace(weights, lora=replace(weights.lora, alpha=yaml.lora_alpha))


def check_network(yaml: YamlFacts, facts: TransformerFacts, source: Path) -> None:
    """Raises: ConfigError when the YAML describes another network than the checkpoint holds."""
    if yaml.config is None or not yaml.network:
        return
    image_input = facts.in_channels > facts.out_channels
    in_checkpoint = {
        "hidden_size": facts.hidden_size,
        "num_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "in_channels": facts.in_channels,
        "time_embed_dim": facts.time_embed_dim,
        "ofs_embed_dim": facts.ofs_embed_dim,
        "text_hidden_size": facts.text_width,
        "patch_size": facts.patch_size,
        "learnable_pos_embed": facts.learned_table,
        "rotary positions": facts.rotary,
        "noised_image_input": image_input,
    }
    defaults = {"in_channels": 16, "ofs_embed_dim": None, "learnable_pos_embed": False}
    stated = {
        **defaults,
        **yaml.module("patch_embed_config"),
        **yaml.module("pos_embed_config"),
        **yaml.network,
        "patch_size": yaml.patch_size or (1, 2, 2),
        "rotary positions": bool(yaml.rotary),
        "noised_image_input": yaml.config.model.noised_image_input,
    }
    wrong = [
        f"{name} {stated[name]} (checkpoint: {value})"
        for name, value in in_checkpoint.items()
        if stated.get(name, value) != value
    ]
    if wrong:
        raise ConfigError(
            f"{source} holds {facts.summary}, but the YAML says {', '.join(wrong)}: use {facts.suitable_yaml}"
        )
