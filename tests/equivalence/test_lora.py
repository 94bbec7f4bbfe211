"""Our LoRA against peft on diffusers' transformer, SAT's own lora2 and its own merge: fp32, B non-zero."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import torch
from cogvideox.transformer.lora import LoraLinear
from cogvideox.transformer.sat_stack import groups_of_one
from cogvideox.weights.lora_map import (
    MergedWeights,
    adapter_header,
    is_adapter,
    layout_name,
    parse_sat,
    plain_name,
)
from cogvideox.weights.transformer_map import convert_state, to_diffusers
from diffusers import CogVideoXTransformer3DModel
from equivalence.test_transformer import build_theirs
from sat.model.finetune import lora2
from torch import Tensor, nn
from transformer.tiny_transformer import build_tiny, inputs, randomise

LORA = {"r": 4, "lora_alpha": 6.0}
TOLERANCE = 2e-6


def test_peft_at_weight_one() -> None:
    """What diffusers' loader reads (names, header) reproduces training at weight 1.0, alpha other than r included."""
    ours = build_tiny(lora=LORA)
    randomise(ours)
    theirs = _with_base_weights(ours)
    state = ours.state_dict()
    adapters = peft_state(state)
    header = adapter_header(LORA["r"], LORA["lora_alpha"])
    config = json.loads(header["lora_adapter_metadata"])
    theirs.load_lora_adapter(adapters, prefix="transformer", metadata=config)
    latent, timestep, context = inputs()
    with torch.no_grad():
        mine, reference = ours(latent, timestep, context), theirs(latent, context, timestep).sample
        theirs.disable_lora()
        without = theirs(latent, context, timestep).sample
    assert (reference - without).abs().max() > 0.1, "the adapters must have a visible effect"
    assert (mine - reference).abs().max() / reference.std() <= TOLERANCE


def test_gradients_equal_peft() -> None:
    ours = build_tiny(lora=LORA)
    randomise(ours)
    theirs = _with_base_weights(ours)
    state = ours.state_dict()
    adapters = peft_state(state)
    config = json.loads(adapter_header(LORA["r"], LORA["lora_alpha"])["lora_adapter_metadata"])
    theirs.load_lora_adapter(adapters, prefix="transformer", metadata=config)
    latent, timestep, context = inputs()
    ours(latent, timestep, context).square().mean().backward()
    theirs(latent, context, timestep).sample.square().mean().backward()
    grads = {name: p.grad for name, p in ours.named_parameters() if is_adapter(name)}
    expected = {
        "transformer." + name.replace(".default_0.", "."): p.grad
        for name, p in theirs.named_parameters()
        if "lora_" in name
    }
    mine = peft_state(grads)
    assert set(mine) == set(expected)
    for name, grad in expected.items():
        assert (mine[name] - grad).abs().max() <= 2e-5 * grad.abs().max() + 1e-9, name


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_merged_against_unmerged(strength: float) -> None:
    ours = build_tiny(lora=LORA)
    randomise(ours)
    sample = inputs()
    ours.mixins["lora"].set_strength(strength)
    state = dict(ours.state_dict())
    with torch.no_grad():
        unmerged = ours(*sample)
        ours.mixins["lora"].merge_lora()
        merged = ours(*sample)
        plain = build_tiny()
        base = {plain_name(name): value for name, value in state.items() if not is_adapter(name)}
        adapters = {name: value for name, value in state.items() if is_adapter(name)}
        plain.load_state_dict(MergedWeights(base, [(adapters, LORA["lora_alpha"] / LORA["r"] * strength)]))
        streamed = plain(*sample)
    assert not any(is_adapter(name) for name in ours.state_dict())
    assert (merged - unmerged).abs().max() <= 5e-6
    torch.testing.assert_close(streamed, merged, rtol=0, atol=0)


def test_strength_zero_is_the_base() -> None:
    ours = build_tiny(lora=LORA)
    randomise(ours)
    plain = build_tiny()
    plain.load_state_dict({plain_name(n): t for n, t in ours.state_dict().items() if not is_adapter(n)})
    ours.mixins["lora"].set_strength(0.0)
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs()), plain(*inputs()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_layer_equals_sat(parts: int) -> None:
    """Same names, same output and gradients as the layer of sat.model.finetune.lora2, with its default alpha of 1."""
    plain = nn.Linear(16, 16 * parts)
    reference = lora2.LoraLinear(nn.Linear, parts, 16, 16 * parts, 4, original_obj=plain)
    ours = next(
        layer
        for layer in build_tiny(lora={"r": 4}, hidden_size=16, num_attention_heads=1).mixins["lora"].adapted_layers()
        if len(layer.matrix_A) == parts
    )
    assert isinstance(ours, LoraLinear)
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    tokens = torch.randn(2, 7, 16, requires_grad=True)
    copy = tokens.detach().clone().requires_grad_()
    expected, mine = reference(tokens), ours(copy)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)
    with groups_of_one():  # SAT's backward asks for its groups
        expected.square().sum().backward()
    mine.square().sum().backward()
    torch.testing.assert_close(copy.grad, tokens.grad, rtol=1e-5, atol=1e-5)
    for (name, parameter), other in zip(reference.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-5, atol=1e-4, msg=name)


def peft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters of a state dict under diffusers' names."""
    return {layout_name(parse_sat(name), "diffusers"): value for name, value in state.items() if is_adapter(name)}


def _with_base_weights(ours: nn.Module) -> CogVideoXTransformer3DModel:
    theirs = build_theirs(final_eps=1e-6)
    base = {plain_name(name): tensor for name, tensor in ours.state_dict().items() if not is_adapter(name)}
    theirs.load_state_dict(dict(convert_state(base, to_diffusers(base))))
    return theirs
