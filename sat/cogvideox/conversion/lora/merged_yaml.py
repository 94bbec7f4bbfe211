"""The configuration that goes with merged weights: that of the run which trained them, without its adapters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from cogvideox import commands
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.conversion.lora.base_model import BaseModel
from cogvideox.conversion.yaml_facts import YamlFacts, check_network
from cogvideox.errors import ConfigError
from cogvideox.weights.lora_file import Adapter
from cogvideox.weights.run_config import trained_config


def merged_yaml(base: BaseModel, adapters: Sequence[Adapter], output: Path) -> str | None:
    """The YAML to leave beside the weights; None when nothing says how such a model is configured.

    Taken from the first that fits the base: an adapter's run, the base's run, the released model's file.
    """
    beside = (trained_config(path) for path in (*(each.path for each in adapters), base.path))
    released = base.facts.family
    candidates = [*beside, None if released is None else commands.ROOT / released.yaml]
    overrides = [
        f"args.load={json.dumps(str(output.resolve()))}",  # in quotes as YAML has them
        "model.not_trainable_prefixes=[first_stage_model, conditioner]",
        "model.network_config.params.modules.lora_config=null",
    ]
    for file in dict.fromkeys(each for each in candidates if each is not None):
        try:
            config = load_config([str(file)], overrides, "train", allow_unknown=True, partial=True)
            check_network(YamlFacts(config), base.facts, base.path)
        except ConfigError:  # damaged, or of another model
            continue
        if config.model.network_config["target"]:
            return _without_training(config)
    return None


def _without_training(config: Config) -> str:
    """What describes the model: a data set and its rates belong to the run that is over."""
    tree = {"args": {"load": config.args.load}, "model": dataclasses.asdict(config.model)}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
