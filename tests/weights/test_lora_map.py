"""Adapter names in SAT and peft, and the merge that happens on reading."""

from __future__ import annotations

import json

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.lora_map import (
    MergedWeights,
    adapter_header,
    is_adapter,
    layout_name,
    merge_weight,
    parse_names,
    parse_sat,
    plain_name,
)
from peft import LoraConfig
from torch import Tensor

LAYER = "transformer.layers.7.attention."


def lora_state(rank: int = 2, width: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """One layer with adapters and one tensor without."""
    state = {"time_embed.0.weight": torch.randn(3, 3)}
    for name, parts in (("query_key_value", 3), ("dense", 1)):
        state[f"{LAYER}{name}.original.weight"] = torch.randn(parts * width, width)
        state[f"{LAYER}{name}.original.bias"] = torch.randn(parts * width)
        for part in range(parts):
            state[f"{LAYER}{name}.matrix_A.{part}"] = torch.randn(rank, width)
            state[f"{LAYER}{name}.matrix_B.{part}"] = torch.randn(width, rank)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("ours", "diffusers", "comfyui", "wrapper"),
    [
        ("query_key_value.matrix_A.0", "attn1.to_q.lora_A", "q.lora_A", "attn1_to_q.lora_down"),
        ("query_key_value.matrix_B.1", "attn1.to_k.lora_B", "k.lora_B", "attn1_to_k.lora_up"),
        ("query_key_value.matrix_A.2", "attn1.to_v.lora_A", "v.lora_A", "attn1_to_v.lora_down"),
        ("dense.matrix_B.0", "attn1.to_out.0.lora_B", "attn_out.lora_B", "attn1_to_out_0.lora_up"),
    ],
)
def test_names_of_every_layout(ours: str, diffusers: str, comfyui: str, wrapper: str) -> None:
    meaning = parse_sat(LAYER + ours)
    expected = {
        "diffusers": f"transformer.transformer_blocks.7.{diffusers}.weight",
        "comfyui": f"diffusion_model.blocks.7.{comfyui}.weight",
        "comfyui-wrapper": f"lora_unet_transformer_blocks_7_{wrapper}.weight",
    }
    assert meaning.sat == LAYER + ours
    assert is_adapter(LAYER + ours)
    for layout, name in expected.items():
        assert layout_name(meaning, layout) == name
        assert parse_names([name]) == {name: meaning}


@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.7.attn1.to_q.lora_A.weight",
        "transformer_blocks.7.attn1.to_q.lora_A.default.weight",
        "transformer.transformer_blocks.7.attn1.to_q.lora_A.default_0.weight",
        "base_model.model.transformer_blocks.7.attn1.to_q.lora_A.weight",
        "base_model.model.transformer.transformer_blocks.7.attn1.to_q.lora_A.default.weight",
        "diffusion_model.transformer_blocks.7.attn1.to_q.lora_down.weight",
        "transformer.transformer_blocks.7.attn1.to_q.lora.down.weight",
        "lora_transformer_transformer_blocks_7_attn1_to_q.lora_down.weight",
        "lora_unet_blocks_7_q.lora_down.weight",
    ],
)
def test_variants_that_are_read(name: str) -> None:
    assert parse_names([name])[name].sat == LAYER + "query_key_value.matrix_A.0"


def test_alpha_tensors() -> None:
    for layout, name in {
        "comfyui": "diffusion_model.blocks.7.attn_out.alpha",
        "comfyui-wrapper": "lora_unet_transformer_blocks_7_attn1_to_out_0.alpha",
    }.items():
        meaning = parse_names([name])[name]
        assert (meaning.layer, meaning.target.sat, meaning.kind) == (7, "dense", "alpha")
        assert layout_name(meaning, layout) == name


@pytest.mark.parametrize("name", ["dense.matrix_A.1", "query_key_value.matrix_A.3", "dense.weight"])
def test_unknown_sat_adapters(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}' is no LoRA matrix .* SAT"):
        parse_sat(LAYER + name)


@pytest.mark.parametrize("ending", ["lora_C.weight", "lora_B.bias", "lora_magnitude_vector", "dora_scale", "weight"])
def test_no_matrix_of_a_lora(ending: str) -> None:
    with pytest.raises(CheckpointError, match=rf"a.safetensors: .*{ending}' is no matrix of a LoRA"):
        parse_names([f"transformer.transformer_blocks.7.attn1.to_q.{ending}"], "a.safetensors")


def test_modules_without_a_place() -> None:
    block = "transformer.transformer_blocks.7."
    modules = ("ff.net.0.proj", "ff.net.2", "attn1.to_q", "norm1.linear", "norm2.linear")
    with pytest.raises(
        CheckpointError, match=r"adapts ff\.net\.0\.proj, ff\.net\.2, norm1\.linear and more.*attn1\.to_q"
    ):
        parse_names([f"{block}{module}.lora_A.weight" for module in modules])
    with pytest.raises(CheckpointError, match=r"adapts proj_out, for which SAT's LoRA has no place"):
        parse_names(["transformer.proj_out.lora_A.weight"])


def test_header_is_a_peft_config() -> None:
    header = adapter_header(128, 1.0)
    config = {
        key.removeprefix("transformer."): value for key, value in json.loads(header["lora_adapter_metadata"]).items()
    }
    assert header["format"] == "pt"
    built = LoraConfig(**config)
    assert (built.r, built.lora_alpha) == (128, 1.0)
    assert set(built.target_modules) == {"to_q", "to_k", "to_v", "to_out.0"}


def test_merged_weights() -> None:
    state, plain, adapters = split(lora_state())
    merged = MergedWeights(plain, [(adapters, 0.25)])
    assert set(merged) == set(plain)
    assert len(merged) == 5
    weight = merged[LAYER + "query_key_value.weight"]
    for part in range(3):
        rows = slice(4 * part, 4 * part + 4)
        update = state[f"{LAYER}query_key_value.matrix_B.{part}"] @ state[f"{LAYER}query_key_value.matrix_A.{part}"]
        expected = state[LAYER + "query_key_value.original.weight"][rows] + 0.25 * update
        torch.testing.assert_close(weight[rows], expected, rtol=0, atol=1e-6)
    assert torch.equal(merged["time_embed.0.weight"], state["time_embed.0.weight"])
    assert torch.equal(merged[LAYER + "dense.bias"], state[LAYER + "dense.original.bias"])
    assert torch.equal(plain[LAYER + "dense.weight"], state[LAYER + "dense.original.weight"]), "the base stays as it is"


def test_several_adapters_on_some_parts() -> None:
    """Ranks differ, and the second changes v only."""
    _, plain, first = split(lora_state())
    second = {name: value for name, value in split(lora_state(rank=3))[2].items() if name.endswith(".2")}
    merged = MergedWeights(plain, [(first, 0.25), (second, -2.0)])[LAYER + "query_key_value.weight"]
    alone = MergedWeights(plain, [(first, 0.25)])[LAYER + "query_key_value.weight"]
    assert torch.equal(merged[:8], alone[:8])
    update = second[f"{LAYER}query_key_value.matrix_B.2"] @ second[f"{LAYER}query_key_value.matrix_A.2"]
    torch.testing.assert_close(merged[8:], alone[8:] - 2.0 * update, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_sum_is_rounded_once(dtype: torch.dtype | None) -> None:
    """In bf16 the sum is that of fp32, rounded at the end: small updates are not lost before they add up."""
    name = LAYER + "dense"
    plain = {f"{name}.weight": torch.ones(8, 8, dtype=torch.bfloat16)}
    matrices = {f"{name}.matrix_A.0": torch.full((16, 8), 2.0**-5), f"{name}.matrix_B.0": torch.full((8, 16), 2.0**-5)}
    merged = MergedWeights(plain, [(matrices, 0.125)] * 2, dtype)[f"{name}.weight"]
    expected = torch.full((8, 8), 1 + 2 * 2.0**-9).to(dtype or torch.bfloat16)  # one alone rounds to 1 in bf16
    assert merged.dtype == expected.dtype and torch.equal(merged, expected)
    whole = merge_weight(
        plain[f"{name}.weight"], [matrices[f"{name}.matrix_A.0"]], [matrices[f"{name}.matrix_B.0"]], 1.0
    )
    assert torch.equal(whole, torch.full((8, 8), 1 + 2.0**-6).to(torch.bfloat16))


@pytest.mark.parametrize("lost", ["dense.matrix_B.0", "query_key_value.matrix_A.1"])
def test_half_an_adapter(lost: str) -> None:
    _, plain, adapters = split(lora_state())
    del adapters[LAYER + lost]
    with pytest.raises(CheckpointError, match=f"has no partner .*{lost}"):
        MergedWeights(plain, [(adapters, 1.0)])


def test_adapters_without_their_base() -> None:
    with pytest.raises(CheckpointError, match=r"has no weight .*\.weight to be merged into"):
        MergedWeights({}, [(split(lora_state())[2], 1.0)])


def test_adapters_of_another_width() -> None:
    with pytest.raises(CheckpointError, match=r"for a layer of 6 to 6, the base has \[4, 4\]: it belongs to another"):
        MergedWeights(split(lora_state())[1], [(split(lora_state(width=6))[2], 1.0)])


def split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The state, its plain weights under plain names, its adapters."""
    plain = {plain_name(name): value for name, value in state.items() if not is_adapter(name)}
    return state, plain, {name: value for name, value in state.items() if is_adapter(name)}
