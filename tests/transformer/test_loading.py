"""State dicts that load: patch weights in both layouts, plain weights under adapters, a stored position table."""

from __future__ import annotations

import pytest
import torch
from cogvideox.weights.lora_map import is_adapter
from transformer.tiny_transformer import build_tiny, inputs, randomise

PATCH = "mixins.patch_embed.proj.weight"
TABLE = "mixins.pos_embed.pos_embedding"


@pytest.mark.parametrize("patch_size", [2, [1, 2, 2]])
def test_patch_weight_of_a_linear_layer(patch_size: object) -> None:
    model = build_tiny(patch_size=patch_size)
    randomise(model)
    state = model.state_dict()
    assert state[PATCH].shape == (64, 4, 2, 2)
    other = build_tiny(patch_size=patch_size)
    other.load_state_dict(state | {PATCH: state[PATCH].flatten(1)})
    torch.testing.assert_close(other(*inputs()), model(*inputs()), rtol=0, atol=0)


def test_patch_weight_of_a_convolution() -> None:
    sizes = {"patch_size": [2, 2, 2], "num_frames": 13}
    model = build_tiny(**sizes)
    assert model.state_dict()[PATCH].shape == (64, 4 * 2 * 2 * 2)
    model.load_state_dict(model.state_dict() | {PATCH: torch.randn(64, 8, 2, 2)})
    assert model(*inputs((4, 8, 12))).shape == (2, 4, 4, 8, 12)


def test_patch_projection_is_the_convolution() -> None:
    model = build_tiny()
    randomise(model)
    proj = model.mixins["patch_embed"].proj
    latent = inputs()[0]
    expected = torch.nn.functional.conv2d(latent.flatten(0, 1), proj.weight, proj.bias, stride=2)
    expected = expected.unflatten(0, latent.shape[:2]).permute(0, 1, 3, 4, 2).flatten(1, 3)
    torch.testing.assert_close(proj(latent), expected, rtol=0, atol=2e-6)


def test_wrong_patch_weight_is_an_error() -> None:
    model = build_tiny()
    with pytest.raises(RuntimeError, match=r"size mismatch for mixins\.patch_embed\.proj\.weight"):
        model.load_state_dict(model.state_dict() | {PATCH: torch.zeros(64, 5, 2, 2)})


def test_plain_weights_under_adapters() -> None:
    """They land in `.original.`, and the adapters that they do not have are reported."""
    plain, adapted = build_tiny(), build_tiny(lora={"r": 4})
    randomise(plain)
    verdict = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert verdict.unexpected_keys == []
    assert sorted(verdict.missing_keys) == sorted(filter(is_adapter, adapted.state_dict()))
    torch.testing.assert_close(adapted(*inputs()), plain(*inputs()), rtol=0, atol=1e-6)


def test_stored_position_table_is_used() -> None:
    model = build_tiny()
    randomise(model)
    before = model(*inputs())
    model.load_state_dict(model.state_dict() | {TABLE: torch.randn_like(model.state_dict()[TABLE])})
    assert (model(*inputs()) - before).abs().max() > 0.1


def test_merged_names_are_those_of_a_plain_model() -> None:
    adapted = build_tiny(lora={"r": 4})
    adapted.mixins["lora"].merge_lora()
    assert list(adapted.state_dict()) == list(build_tiny().state_dict())
    assert adapted.mixins["lora"].adapted_layers() == []


def test_adapters_start_without_effect() -> None:
    adapted = build_tiny(lora={"r": 4, "lora_dropout": 0.5})
    state = adapted.state_dict()
    bound = 64**-0.5  # kaiming uniform with a = sqrt 5
    for name in filter(is_adapter, state):
        if "matrix_B" in name:
            assert not state[name].any()
        else:
            assert 0.8 * bound < state[name].abs().max() <= bound
    randomise(adapted)
    adapted.mixins["lora"].init_adapters()
    assert not adapted.state_dict()["transformer.layers.0.attention.dense.matrix_B.0"].any()
