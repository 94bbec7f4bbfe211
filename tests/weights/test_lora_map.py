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
    merge_weight,
    plain_name,
    to_peft,
    to_sat,
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
    ("ours", "theirs"),
    [
        ("query_key_value.matrix_A.0", "to_q.lora_A"),
        ("query_key_value.matrix_B.1", "to_k.lora_B"),
        ("query_key_value.matrix_A.2", "to_v.lora_A"),
        ("dense.matrix_B.0", "to_out.0.lora_B"),
    ],
)
def test_names(ours: str, theirs: str) -> None:
    full = f"transformer.transformer_blocks.7.attn1.{theirs}.weight"
    assert to_peft([LAYER + ours])[0].targets == (full,)
    assert to_sat([full])[0].targets == (LAYER + ours,)
    assert is_adapter(LAYER + ours)


def test_unknown_adapters() -> None:
    with pytest.raises(CheckpointError, match=r"dense.matrix_A.1' is no tensor .* SAT"):
        to_peft([LAYER + "dense.matrix_A.1"])
    with pytest.raises(CheckpointError, match=r"attn1\.to_q\.lora_C"):
        to_sat(["transformer.transformer_blocks.7.attn1.to_q.lora_C.weight"])


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
    state = lora_state()
    merged = MergedWeights(state, scaling=0.25)
    assert set(merged) == {plain_name(name) for name in state if not is_adapter(name)}
    assert len(merged) == 5
    weight = merged[LAYER + "query_key_value.weight"]
    for part in range(3):
        rows = slice(4 * part, 4 * part + 4)
        update = state[f"{LAYER}query_key_value.matrix_B.{part}"] @ state[f"{LAYER}query_key_value.matrix_A.{part}"]
        expected = state[LAYER + "query_key_value.original.weight"][rows] + 0.25 * update
        torch.testing.assert_close(weight[rows], expected, rtol=0, atol=1e-6)
    assert torch.equal(merged["time_embed.0.weight"], state["time_embed.0.weight"])
    assert torch.equal(merged[LAYER + "dense.bias"], state[LAYER + "dense.original.bias"])


def test_merge_rounds_once() -> None:
    """In bf16 the sum is that of fp32, rounded at the end: small updates are not lost before they add up."""
    original = torch.ones(1, 8, dtype=torch.bfloat16)
    a, b = torch.full((16, 8), 2.0**-5, dtype=torch.bfloat16), torch.full((1, 16), 2.0**-5, dtype=torch.bfloat16)
    merged = merge_weight(original, [a], [b], 1.0)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, torch.full((1, 8), 1 + 2.0**-6).to(torch.bfloat16))


@pytest.mark.parametrize("lost", ["dense.matrix_B.0", "query_key_value.matrix_A.1"])
def test_half_an_adapter(lost: str) -> None:
    state = lora_state()
    del state[LAYER + lost]
    with pytest.raises(CheckpointError, match=f"has no partner .*{lost}"):
        MergedWeights(state, 1.0)


def test_adapters_without_their_base() -> None:
    with pytest.raises(CheckpointError, match=r"has no weight .*original.weight to be merged into"):
        MergedWeights({n: t for n, t in lora_state().items() if is_adapter(n)}, 1.0)
