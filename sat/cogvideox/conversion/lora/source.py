"""Opening an adapter as the user names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cogvideox.config.load import load_config
from cogvideox.conversion.yaml_facts import YamlFacts
from cogvideox.errors import ConfigError
from cogvideox.weights.base import LoraFacts
from cogvideox.weights.lora_file import Adapter, read_adapter
from cogvideox.weights.lora_map import check_alpha
from cogvideox.weights.run_config import trained_config


def open_adapter(path: Path, iteration: str | None = None, alpha: float | None = None) -> Adapter:
    """Read an adapter; alpha of old SAT runs, whose files don't state it, comes from the run's YAML.

    Raises: CheckpointError when it is no LoRA or contradicts alpha; ConfigError for a YAML beside it that is broken or
        describes another LoRA.
    """
    adapter = read_adapter(path, iteration, alpha)
    if adapter.is_alpha_known or adapter.layout != "SAT":
        return adapter
    yaml = run_yaml(adapter.path)
    if yaml is None or yaml.lora_alpha is None:
        return adapter
    rank = adapter.lora.rank
    described = yaml.module("lora_config").get("r", rank)
    if described != rank:
        raise ConfigError(
            f"the run's YAML describes a LoRA of rank {described}, {adapter.path} holds one of {rank}: give --alpha"
        )
    lora = LoraFacts(rank, check_alpha(yaml.lora_alpha, f"the run's YAML of {adapter.path}"))
    return replace(adapter, lora=lora, alpha_from="from the run's YAML", is_alpha_known=True)


def run_yaml(weights: Path) -> YamlFacts | None:
    """The configuration beside a weight file of a run, None for a file that is in no run folder.

    Raises: ConfigError for a broken one.
    """
    file = trained_config(weights)
    return None if file is None else YamlFacts(load_config([str(file)], [], "train", allow_unknown=True, partial=True))
