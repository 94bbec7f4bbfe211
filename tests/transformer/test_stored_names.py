"""Names and shapes of the shipped full-size configurations are those of the published checkpoints.

published_names.json holds what was read from the published files, `{i}` standing for every layer.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cogvideox.config.load import load_config
from cogvideox.config.targets import instantiate
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.weights.key_rules import load_module
from transformer.tiny_transformer import FAMILIES, build_tiny, family_inputs, randomise

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = json.loads(Path(__file__).with_name("published_names.json").read_text(encoding="utf-8"))
# Buffers of the 1.0 rotary models: computed here for every forward, and accepted when a checkpoint is loaded.
COMPUTED = ("mixins.pos_embed.freqs_sin", "mixins.pos_embed.freqs_cos")


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    stored = PUBLISHED[name]
    shapes = {}
    for template, shape in stored["names"].items():
        layers = range(stored["num_layers"]) if "{i}" in template else range(1)
        shapes |= {template.replace("{i}", str(i)): tuple(shape) for i in layers}
    return shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes(name: str) -> None:
    node = load_config([str(CONFIGS / f"{name}.yaml")], [], "train", partial=True).model.network_config
    with torch.device("meta"):
        model: DiffusionTransformer = instantiate(node, dtype=torch.bfloat16)
        ours = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        published = published_shapes(name)
        for key in COMPUTED:
            if key in published:
                assert key not in ours
                table = model.mixins["pos_embed"].stored_tables()[key.rpartition(".")[2]]
                ours[key] = tuple(table.shape)
    assert ours == published
    assert len(ours) == PUBLISHED[name]["num_tensors"]
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == PUBLISHED[name]["num_params"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("cogvideox_2b", (13, 60, 90)),
        ("cogvideox_5b", (13, 60, 90)),
        ("cogvideox_5b_i2v", (13, 60, 90)),
        ("cogvideox_5b_i2v", (9, 40, 40)),
        ("cogvideox1.5_5b", (22, 96, 170)),  # 5 seconds, padded from 21
        ("cogvideox1.5_5b", (42, 96, 170)),  # 10 seconds, padded from 41
        ("cogvideox1.5_5b_i2v", (22, 170, 96)),
        ("cogvideox1.5_5b_i2v", (22, 96, 300)),
    ],
)
def test_clip_sizes_of_the_families(name: str, grid: tuple[int, int, int]) -> None:
    """The shipped configurations take the clips that the published models are for; one layer, on the meta device."""
    node = load_config([str(CONFIGS / f"{name}.yaml")], [], "train", partial=True).model.network_config
    node = {**node, "params": {**node["params"], "num_layers": 1}}
    frames, height, width = grid
    with torch.device("meta"):
        model: DiffusionTransformer = instantiate(node, dtype=torch.bfloat16)
        latent = torch.empty(1, frames, model.network.in_channels, height, width)
        out = model(latent, torch.empty(1), torch.empty(1, model.network.text_length, 4096))
    assert out.shape == (1, frames, 16, height, width)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_file_loads_completely(family: str) -> None:
    """With the computed buffers that 1.0 files hold beside our names, and into a model with adapters as well."""
    model = build_tiny(family=family)
    randomise(model)
    buffers = {}
    if family.startswith("5b"):
        buffers = dict(zip(COMPUTED, model.mixins["pos_embed"].stored_tables().values(), strict=True))
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in (model.state_dict() | buffers).items()}
    for lora in (None, {"r": 2}):
        other = build_tiny(family=family, lora=lora)
        report = load_module(other, state)
        assert report.belongs_elsewhere == tuple(f"model.diffusion_model.{name}" for name in buffers)
        assert not report.missing
        with torch.no_grad():
            sample = family_inputs(family)
            torch.testing.assert_close(other(*sample), model(*sample), rtol=0, atol=2e-6)
