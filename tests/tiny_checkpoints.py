"""Checkpoints of every kind that the tools take, made from one tiny random family (`tiny.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tiny
import torch
from cogvideox.config.targets import instantiate
from cogvideox.weights.lora_map import is_adapter
from cogvideox.weights.sat_folder import STATES_FILE, fingerprint, read_checkpoint, read_vae, write_checkpoint

PREFIX = "model.diffusion_model."
RANK, ALPHA = 4, 6.0
FAMILIES = ("2b", "5b", "5b_i2v", "1.5", "1.5_i2v")  # of `tiny`


@dataclass(frozen=True)
class Checkpoints:
    """Where they are. Every LoRA is the same one: rank 4, alpha 6, on the published transformer."""

    family: tiny.TinyFamily
    run: Path  # a run folder of this framework: adapters only, training_config.yaml beside
    old_lora: Path  # a file with base and adapters, without metadata
    engine: Path  # a file with transformer, text encoder and VAE


def write_checkpoints(folder: Path) -> Checkpoints:
    """Make them all in a folder; about three seconds."""
    family = tiny.write_family(folder / "family", num_clips=0)
    base = read_checkpoint(family.transformer)
    model = instantiate(tiny.network_node({"r": RANK, "lora_alpha": ALPHA}), dtype=torch.float32)
    model.load_state_dict({name.removeprefix(PREFIX): value for name, value in base.module.items()}, strict=False)
    generator = torch.Generator().manual_seed(5)
    for name, value in model.state_dict().items():
        if is_adapter(name):
            value.copy_(torch.randn(value.shape, generator=generator) / value.shape[1] ** 0.5)
    whole = {PREFIX + name: value for name, value in model.state_dict().items()}
    adapters = {name: value for name, value in whole.items() if is_adapter(name)}

    run = folder / "run"
    origin = {"path": str(base.path), "sha256": fingerprint(base.path)}
    write_checkpoint(run, 20, adapters, {"lora": {"r": RANK, "alpha": ALPHA}, "base": origin})
    config = {"model": tiny.model_section(family, lora={"r": RANK, "lora_alpha": ALPHA})}
    tiny.write_yaml(run / "training_config.yaml", config)

    old_lora = folder / "old" / "1" / STATES_FILE
    old_lora.parent.mkdir(parents=True)
    torch.save({"module": whole}, old_lora)
    engine = folder / "engine" / "500" / STATES_FILE
    engine.parent.mkdir(parents=True)
    vae = {f"first_stage_model.{name}": value for name, value in read_vae(family.vae).items()}
    text = {"conditioner.embedders.0.transformer.shared.weight": torch.zeros(3, 3)}
    torch.save({"module": {**base.module, **vae, **text}, "iteration": 500}, engine)
    return Checkpoints(family, run, old_lora, engine)
