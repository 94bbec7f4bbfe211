"""The configuration files say what diffusers' own defaults say, which are those of CogVideoX-2B."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from cogvideox.errors import CheckpointError
from cogvideox.weights.diffusers_folder import (
    PipelineSettings,
    model_index,
    scheduler_config,
    transformer_config,
    transformer_entries,
    vae_config,
)
from cogvideox.weights.families import TransformerFacts, read_facts
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from torch import Size, float16, float32
from weights.test_key_rules import published_shapes

SETTINGS = PipelineSettings()


def defaults(kind: Any) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def assert_defaults(config: dict[str, Any], kind: Any, *, but: dict[str, Any]) -> None:
    """Every key is a parameter of the class and has its default, except `but`."""
    known = defaults(kind)
    assert config["_class_name"] == kind.__name__
    for key, value in config.items():
        if not key.startswith("_"):
            expected = but.get(key, known[key])
            assert value == (list(expected) if isinstance(expected, tuple) else expected), key


def facts() -> TransformerFacts:
    return read_facts(published_shapes("CogVideoX-2B"))


def test_transformer_of_2b() -> None:
    assert_defaults(transformer_config(facts(), SETTINGS), CogVideoXTransformer3DModel, but={})


def vae_shapes() -> dict[str, Size]:
    """Those of the released VAE that its configuration is read from."""
    widths = (128, 256, 256, 512)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
        "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
        "decoder.conv_out.conv.weight": (3, 128, 3, 3, 3),
    }
    for level, width in enumerate(widths):
        for block in range(3):
            shapes[f"encoder.down.{level}.block.{block}.conv1.conv.weight"] = (width, width, 3, 3, 3)
    return {name: Size(shape) for name, shape in shapes.items()}


def test_released_vae() -> None:
    assert_defaults(vae_config(vae_shapes(), SETTINGS), AutoencoderKLCogVideoX, but={})


def test_scheduler() -> None:
    differ = {
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    assert_defaults(scheduler_config(SETTINGS), CogVideoXDDIMScheduler, but=differ)


def test_model_index() -> None:
    index = model_index(SETTINGS)
    assert index["_class_name"] == "CogVideoXPipeline"
    assert index["scheduler"] == ["diffusers", "CogVideoXDDIMScheduler"]
    assert {key for key in index if not key.startswith("_")} == {
        "scheduler",
        "text_encoder",
        "tokenizer",
        "transformer",
        "vae",
    }


def test_entries_are_planned_without_computing() -> None:
    shapes = {
        "transformer.layers.0.attention.query_key_value.weight": (Size((12, 4)), float16),
        "mixins.adaln_layer.adaLN_modulations.0.1.bias": (Size((48,)), float16),
        "mixins.pos_embed.pos_embedding": (Size((1, 9, 4)), float16),
    }
    entries = transformer_entries(shapes, facts(), None)
    found = {entry.name.removeprefix("transformer_blocks.0."): (entry.shape, entry.dtype) for entry in entries}
    assert found == {
        "attn1.to_q.weight": ((4, 4), float16),
        "attn1.to_k.weight": ((4, 4), float16),
        "attn1.to_v.weight": ((4, 4), float16),
        "norm1.linear.bias": ((24,), float16),
        "norm2.linear.bias": ((24,), float16),
    }
    assert {entry.dtype for entry in transformer_entries(shapes, facts(), float32)} == {float32}


def test_not_a_vae() -> None:
    shapes = vae_shapes()
    del shapes["decoder.conv_in.conv.weight"]
    with pytest.raises(CheckpointError, match=r"not a CogVideoX VAE: no decoder\.conv_in"):
        vae_config(shapes, SETTINGS)
