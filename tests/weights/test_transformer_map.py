"""The table between SAT's and diffusers' transformer tensors: complete, reversible, exact about rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.transformer_map import (
    NOT_IN_DIFFUSERS,
    RULES,
    convert_state,
    find_rule,
    fit_patch_weight,
    to_diffusers,
    to_sat,
)
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

D, HEADS, TIME, TEXT, CHANNELS = 32, 2, 8, 12, 4


FAMILIES: dict[str, dict[str, Any]] = {
    "2b": {},
    "5b": {"use_rotary_positional_embeddings": True},
    "5b_i2v": {
        "in_channels": 2 * CHANNELS,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
    },
    "1.5": {"patch_size_t": 2, "patch_bias": False, "use_rotary_positional_embeddings": True},
    "1.5_i2v": {
        "in_channels": 2 * CHANNELS,
        "patch_size_t": 2,
        "patch_bias": False,
        "use_rotary_positional_embeddings": True,
        "ofs_embed_dim": TIME,
    },
}


def build_theirs(family: str) -> dict[str, Tensor]:
    sizes = {"in_channels": CHANNELS, **FAMILIES[family]}
    model = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=D // HEADS,
        out_channels=CHANNELS,
        time_embed_dim=TIME,
        text_embed_dim=TEXT,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        **sizes,
    )
    return {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return build_theirs("2b")


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_equal(family: str) -> None:
    theirs = build_theirs(family)
    patch = (FAMILIES[family].get("patch_size_t", 1), 2, 2)
    ours = dict(convert_state(theirs, to_sat(theirs, patch)))
    if family != "2b":
        ours["transformer.position_embeddings.weight"] = torch.zeros(64, D)  # as every rotary checkpoint of SAT's
    back = dict(convert_state(ours, to_diffusers(ours, patch)))
    assert set(back) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_known_beforehand(family: str) -> None:
    theirs = build_theirs(family)
    patch = (FAMILIES[family].get("patch_size_t", 1), 2, 2)
    ours = dict(convert_state(theirs, to_sat(theirs, patch)))
    for state, steps in ((theirs, to_sat(theirs, patch)), (ours, to_diffusers(ours, patch))):
        for step in steps:
            sources = [state[name] for name in step.sources]
            made = [value.shape for value in step.run(sources)]
            assert step.shapes([value.shape for value in sources]) == made, step.targets


def test_every_rule_is_used() -> None:
    used = {find_rule(RULES, name, "diffusers")[0] for family in FAMILIES for name in build_theirs(family)}
    assert used == set(RULES)
    in_all = set.intersection(
        *({find_rule(RULES, name, "diffusers")[0] for name in build_theirs(family)} for family in FAMILIES)
    )
    # Norms of queries and keys are in every published model, but a YAML may leave them out.
    assert {rule for rule in RULES if not rule.optional} <= in_all


def test_rows_of_attention_and_modulation() -> None:
    """q, k, v are stacked in this order; norm1 takes chunks 0-2 and 6-8 of the modulation, norm2 the rest."""
    layer = "transformer.layers.3.attention.query_key_value.weight"
    modulation = "mixins.adaln_layer.adaLN_modulations.3.1.bias"
    ours = {layer: torch.arange(6.0)[:, None], modulation: torch.arange(12.0)}
    there = dict(convert_state(ours, to_diffusers(ours)))
    block = "transformer_blocks.3."
    assert there[block + "attn1.to_q.weight"].flatten().tolist() == [0, 1]
    assert there[block + "attn1.to_k.weight"].flatten().tolist() == [2, 3]
    assert there[block + "attn1.to_v.weight"].flatten().tolist() == [4, 5]
    assert there[block + "norm1.linear.bias"].tolist() == [0, 1, 2, 6, 7, 8]
    assert there[block + "norm2.linear.bias"].tolist() == [3, 4, 5, 9, 10, 11]


def test_streaming_reads_each_tensor_once(theirs: dict[str, Tensor]) -> None:
    reads: list[str] = []

    class Recorder(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            reads.append(name)
            return super().__getitem__(name)

    for _ in convert_state(Recorder(theirs), to_sat(theirs)):
        pass
    assert sorted(reads) == sorted(theirs)


def test_fixed_tables_stay_behind_and_the_learned_one_does_not() -> None:
    table = "mixins.pos_embed.pos_embedding"
    assert to_diffusers(NOT_IN_DIFFUSERS) == []
    assert to_diffusers([table]) == []
    for sign in NOT_IN_DIFFUSERS:
        assert [step.targets for step in to_diffusers([table, sign])] == [("patch_embed.pos_embedding",)]


def test_patch_weight_layouts() -> None:
    conv = torch.randn(8, 4, 2, 2)
    assert torch.equal(fit_patch_weight(conv.flatten(1), (1, 2, 2)), conv)
    assert torch.equal(fit_patch_weight(conv, (1, 2, 2)), conv)
    assert torch.equal(fit_patch_weight(conv, (2, 2, 2)), conv.flatten(1))
    name = "mixins.patch_embed.proj.weight"
    ((target, tensor),) = convert_state({name: conv.flatten(1)}, to_diffusers([name]))
    assert (target, tensor.shape) == ("patch_embed.proj.weight", conv.shape)
    ((target, tensor),) = convert_state(
        {"patch_embed.proj.weight": conv}, to_sat(["patch_embed.proj.weight"], (2, 2, 2))
    )
    assert (target, tensor.shape) == (name, (8, 16))


@pytest.mark.parametrize(
    "name", ["transformer.layers.0.attention.query.weight", "encoder.conv_in.weight", "time_embed.1.weight"]
)
def test_unknown_sat_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}' is no tensor of a CogVideoX transformer in SAT's naming"):
        to_diffusers([name])


def test_unknown_diffusers_name() -> None:
    with pytest.raises(
        CheckpointError, match=r"'transformer_blocks\.0\.attn2\.to_q\.weight' is no tensor .* diffusers's naming"
    ):
        to_sat(["transformer_blocks.0.attn2.to_q.weight"])


def test_missing_sibling() -> None:
    with pytest.raises(CheckpointError, match=r"holds transformer_blocks.0.attn1.to_q.bias but not .*to_v.bias"):
        to_sat(["transformer_blocks.0.attn1.to_q.bias", "transformer_blocks.0.attn1.to_k.bias"])


@pytest.mark.parametrize(
    ("steps", "state", "message"),
    [
        (to_diffusers, {"transformer.layers.0.attention.query_key_value.bias": torch.zeros(7)}, "7 rows"),
        (to_diffusers, {"mixins.patch_embed.proj.weight": torch.zeros(8, 6)}, r"shape \(8, 6\)"),
        (
            to_sat,
            {f"transformer_blocks.0.norm{k}.linear.bias": torch.zeros(7) for k in (1, 2)},
            "7 rows, which are not 6 equal parts",
        ),
    ],
)
def test_rows_that_do_not_divide(steps: Any, state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dict(convert_state(state, steps(state)))
    with pytest.raises(CheckpointError, match=message):
        for step in steps(state):
            step.shapes([state[name].shape for name in step.sources])
