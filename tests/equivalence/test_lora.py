"""Our LoRA against peft on diffusers' transformer, SAT's own lora2 and its own merge: fp32, B non-zero."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from cogvideox.transformer.lora import LoraLinear
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.transformer.sat_stack import groups_of_one
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.lora_map import (
    LayoutName,
    MergedWeights,
    adapter_header,
    is_adapter,
    layout_name,
    parse_sat,
    plain_name,
)
from cogvideox.weights.sat_folder import write_checkpoint
from cogvideox.weights.transformer_map import convert_state, to_diffusers
from convert_lora import main as convert
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from equivalence.test_transformer import ROUNDING, build_theirs, their_prediction
from safetensors.torch import load_file
from sat.model.finetune import lora2
from torch import Tensor, nn
from transformer.tiny_transformer import FAMILIES, build_tiny, family_inputs, inputs, randomise

LORA = {"r": 4, "lora_alpha": 6.0}


def exported(ours: DiffusionTransformer, layout: LayoutName, folder: Path) -> Path:
    """What the tool makes of a checkpoint with these weights; alpha is other than the rank."""
    state = {TRANSFORMER_PREFIX + name: value for name, value in ours.state_dict().items()}
    write_checkpoint(folder / "run", 1, state, {"lora": {"r": LORA["r"], "alpha": LORA["lora_alpha"]}})
    convert([str(folder / "run"), "--to", layout, "--output_path", str(folder / "out")])
    return folder / "out"


def pair(family: str) -> tuple[DiffusionTransformer, CogVideoXTransformer3DModel]:
    """Ours with adapters, theirs with the same base."""
    ours = build_tiny(family=family, lora=LORA)
    randomise(ours)
    return ours, _with_base_weights(ours, family)


def check_equal(mine: Tensor, reference: Tensor, without: Tensor) -> None:
    assert (reference - without).abs().max() > 4e3 * ROUNDING, "the adapters must have a visible effect"
    assert (mine - reference).abs().max() / reference.std() <= ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_at_weight_one(family: str, tmp_path: Path) -> None:
    """What a pipeline loads from the exported folder reproduces training at weight 1.0, and half of it at 0.5."""
    ours, theirs = pair(family)
    sample = family_inputs(family)
    with torch.no_grad():
        without = their_prediction(theirs, sample)
        state, header = CogVideoXPipeline.lora_state_dict(
            str(exported(ours, "diffusers", tmp_path)), return_lora_metadata=True
        )
        CogVideoXPipeline.load_lora_into_transformer(state, theirs, adapter_name="mine", metadata=header)
        check_equal(ours(*sample), their_prediction(theirs, sample), without)
        theirs.set_adapters("mine", 0.5)
        ours.mixins["lora"].set_strength(0.5)
        check_equal(ours(*sample), their_prediction(theirs, sample), without)


@pytest.mark.parametrize("family", FAMILIES)
def test_comfyui_at_strength_one(family: str, tmp_path: Path) -> None:
    """ComfyUI adds alpha / rank * up @ down to the module of its CogVideoX model that the key names."""
    modules = {"q": "attn1.to_q", "k": "attn1.to_k", "v": "attn1.to_v", "attn_out": "attn1.to_out.0"}
    ours, theirs = pair(family)
    (file,) = exported(ours, "comfyui", tmp_path).glob("*.safetensors")
    state = load_file(file)
    sample = family_inputs(family)
    with torch.no_grad():
        without = their_prediction(theirs, sample)
        for layer in range(2):
            for name, other in modules.items():
                key = f"diffusion_model.blocks.{layer}.{name}"
                down, up = state.pop(f"{key}.lora_A.weight"), state.pop(f"{key}.lora_B.weight")
                scale = state.pop(f"{key}.alpha").item() / down.shape[0]
                theirs.get_submodule(f"transformer_blocks.{layer}.{other}").weight.add_(up @ down, alpha=scale)
        assert not state
        check_equal(ours(*sample), their_prediction(theirs, sample), without)


def test_comfyui_wrapper_at_strength_one(tmp_path: Path) -> None:
    """The wrapper merges into diffusers' model: a key is `lora_unet_` and the module's path with underscores."""
    ours, theirs = pair("5b")
    (file,) = exported(ours, "comfyui-wrapper", tmp_path).glob("*.safetensors")
    state = load_file(file)
    sample = family_inputs("5b")
    with torch.no_grad():
        without = their_prediction(theirs, sample)
        for name, module in theirs.named_modules():
            key = "lora_unet_" + name.replace(".", "_")
            if f"{key}.lora_up.weight" in state:
                up, down = state.pop(f"{key}.lora_up.weight"), state.pop(f"{key}.lora_down.weight")
                module.weight.add_(up @ down, alpha=state.pop(f"{key}.alpha").item() / up.shape[1])
        assert not state
        check_equal(ours(*sample), their_prediction(theirs, sample), without)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_peft(family: str) -> None:
    ours, theirs = pair(family)
    adapters = peft_state(ours.state_dict())
    config = json.loads(adapter_header(LORA["r"], LORA["lora_alpha"])["lora_adapter_metadata"])
    theirs.load_lora_adapter(adapters, prefix="transformer", metadata=config)
    sample = family_inputs(family)
    ours(*sample).square().mean().backward()
    their_prediction(theirs, sample).square().mean().backward()
    expected = {
        "transformer." + name.replace(".default_0.", "."): p.grad
        for name, p in theirs.named_parameters()
        if "lora_" in name
    }
    mine = peft_state({name: p.grad for name, p in ours.named_parameters()})
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


def _with_base_weights(ours: DiffusionTransformer, family: str) -> CogVideoXTransformer3DModel:
    theirs = build_theirs(family, final_eps=1e-6)
    base = {plain_name(name): tensor for name, tensor in ours.state_dict().items() if not is_adapter(name)}
    theirs.load_state_dict(dict(convert_state(base, to_diffusers(base, ours.network.patch_size))))
    return theirs
