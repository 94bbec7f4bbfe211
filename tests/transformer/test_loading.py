"""State dicts that load: patch weights in both layouts, plain weights under adapters, stored position tables; and the
weights of other families, which don't."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.weights.key_rules import load_module
from cogvideox.weights.lora_map import is_adapter
from transformer.tiny_transformer import FAMILIES, build_tiny, family_inputs, inputs, randomise

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


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_weights_under_adapters(family: str) -> None:
    """They land in `.original.`, and the adapters that they do not have are reported."""
    plain, adapted = build_tiny(family=family), build_tiny(family=family, lora={"r": 4})
    randomise(plain)
    verdict = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert verdict.unexpected_keys == []
    assert sorted(verdict.missing_keys) == sorted(filter(is_adapter, adapted.state_dict()))
    sample = family_inputs(family)
    torch.testing.assert_close(adapted(*sample), plain(*sample), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["2b", "5b_i2v"])
def test_stored_position_table_is_used(family: str) -> None:
    model = build_tiny(family=family)
    randomise(model)
    sample = family_inputs(family)
    before = model(*sample)
    model.load_state_dict(model.state_dict() | {TABLE: torch.randn_like(model.state_dict()[TABLE])})
    assert (model(*sample) - before).abs().max() > 0.1


def test_learned_table_of_another_size_is_never_replaced() -> None:
    """Also in a checkpoint without SAT's unused table, which is what tells that the stored one is learned."""
    state = build_tiny(family="5b_i2v", num_frames=5).state_dict()
    del state["transformer.position_embeddings.weight"]
    for given in (state, build_tiny(family="5b_i2v", num_frames=5).state_dict()):
        with pytest.raises(CheckpointError, match="learned position"):
            load_module(build_tiny(family="5b_i2v"), given)


def test_merged_names_are_those_of_a_plain_model() -> None:
    adapted = build_tiny(lora={"r": 4})
    adapted.get_mixin("lora").merge_lora()  # as SAT's users call it
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


NAMES = {
    "2b": "CogVideoX-2B",
    "5b": "CogVideoX-5B",
    "5b_i2v": "CogVideoX-5B-I2V",
    "1.5": "CogVideoX1.5-5B",
    "1.5_i2v": "CogVideoX1.5-5B-I2V",
}


@cache
def real_channels(family: str) -> DiffusionTransformer:
    """A tiny network with the channels of published ones, which tell 1.5 weights apart."""
    return build_tiny(family=family, in_channels=32 if family.endswith("i2v") else 16, out_channels=16)


@pytest.mark.parametrize("theirs", FAMILIES)
@pytest.mark.parametrize("ours", FAMILIES)
def test_weights_of_another_family(ours: str, theirs: str) -> None:
    """T2V weights with an I2V network and the reverse, 1.0 with 1.5, sin/cos with rotary: one line that names both."""
    state = real_channels(theirs).state_dict()
    if ours == theirs:
        assert load_module(real_channels(ours), state).loaded
        return
    with pytest.raises(CheckpointError, match=rf"holds {NAMES[theirs]} .*describes {NAMES[ours]} .*: use "):
        load_module(real_channels(ours), state)


def test_ofs_weights_without_ofs_embed_dim() -> None:
    model = build_tiny(family="1.5_i2v", ofs_embed_dim=None, in_channels=32, out_channels=16)
    with pytest.raises(CheckpointError, match=r"ofs_embed_dim 32\), but .* describes .* 2 frames\): use"):
        load_module(model, real_channels("1.5_i2v").state_dict())
    with pytest.raises(CheckpointError, match=r"2 frames\), but .* describes .*ofs_embed_dim 32\): use"):
        load_module(real_channels("1.5_i2v"), model.state_dict())
