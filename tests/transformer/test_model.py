"""The assembled transformer: stored names, build without side effects, checkpointing, compiling, checks."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cogvideox.errors import ConfigError, ShapeError
from cogvideox.transformer.block import transformer_block
from cogvideox.transformer.model import DiffusionTransformer
from sat.model.base_model import BaseModel
from transformer.tiny_transformer import LATENT_GRID, TEXT_LENGTH, build_tiny, inputs, module_nodes, randomise

from sat import mpu

LAYERS_2B, WIDTH_2B, TOKENS_2B = 30, 1920, 17776
LORA_RANK = 128


def expected_2b(lora: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published 2B checkpoint, without the prefix `model.diffusion_model.`."""
    d, r = WIDTH_2B, LORA_RANK
    names: dict[str, tuple[int, ...]] = {
        "mixins.pos_embed.pos_embedding": (1, TOKENS_2B, d),
        **_linear("mixins.patch_embed.text_proj", d, 4096),
        "mixins.patch_embed.proj.weight": (d, 16, 2, 2),
        "mixins.patch_embed.proj.bias": (d,),
        **_norm("mixins.final_layer.norm_final", d),
        **_linear("mixins.final_layer.linear", 64, d),
        **_linear("mixins.final_layer.adaLN_modulation.1", 2 * d, 512),
        **_norm("transformer.final_layernorm", d),
        **_linear("time_embed.0", 512, d),
        **_linear("time_embed.2", 512, 512),
    }
    for i in range(LAYERS_2B):
        layer = f"transformer.layers.{i}."
        original = ".original" if lora else ""
        names |= _linear(f"mixins.adaln_layer.adaLN_modulations.{i}.1", 12 * d, 512)
        names |= _norm(f"mixins.adaln_layer.query_layernorm_list.{i}", 64)
        names |= _norm(f"mixins.adaln_layer.key_layernorm_list.{i}", 64)
        names |= _norm(layer + "input_layernorm", d) | _norm(layer + "post_attention_layernorm", d)
        names |= _linear(layer + "attention.query_key_value" + original, 3 * d, d)
        names |= _linear(layer + "attention.dense" + original, d, d)
        names |= _linear(layer + "mlp.dense_h_to_4h", 4 * d, d) | _linear(layer + "mlp.dense_4h_to_h", d, 4 * d)
        if lora:
            for target, parts in (("query_key_value", 3), ("dense", 1)):
                for k in range(parts):
                    names[f"{layer}attention.{target}.matrix_A.{k}"] = (r, d)
                    names[f"{layer}attention.{target}.matrix_B.{k}"] = (d, r)
    return names


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@pytest.mark.parametrize("lora", [False, True])
def test_stored_names_of_2b(lora: bool) -> None:
    nodes = module_nodes(text_width=4096, lora={"r": LORA_RANK} if lora else None)
    with torch.device("meta"):
        model = DiffusionTransformer(1920, 30, 30, modules=nodes, dtype=torch.float16)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected_2b(lora)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert sum(p.numel() for p in model.parameters()) == (1_786_896_192 if lora else 1_727_913_792)


def test_is_a_sat_model() -> None:
    model = build_tiny()
    assert isinstance(model, BaseModel)
    assert model.hook_origins["layer_forward"] == "adaln_layer"
    assert not model.mixins["pos_embed"].pos_embedding.requires_grad


def test_build_leaves_random_generators_alone() -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    deterministic = torch.backends.cudnn.deterministic
    first = build_tiny()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()
    assert torch.backends.cudnn.deterministic == deterministic
    torch.manual_seed(8)
    second, again = build_tiny(), build_tiny()
    name = "transformer.layers.0.mlp.dense_h_to_4h.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name]), "weights follow the seed"
    assert torch.equal(again.state_dict()[name], second.state_dict()[name])


def test_build_without_process_group_leaves_none() -> None:
    assert not dist.is_initialized()
    build_tiny()
    assert not dist.is_initialized()
    assert not mpu.model_parallel_is_initialized()


def test_build_under_a_running_process_group() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = build_tiny()
        model(*inputs())
        assert dist.is_initialized()
        assert not mpu.model_parallel_is_initialized()
    finally:
        dist.destroy_process_group()


def test_forward_needs_no_process_group_and_keeps_its_inputs() -> None:
    model = build_tiny()
    randomise(model)
    sample = inputs()
    copies = [tensor.clone() for tensor in sample]
    out = model(*sample)
    assert out.shape == sample[0].shape
    assert all(torch.equal(a, b) for a, b in zip(sample, copies, strict=True))


def test_samples_of_a_batch_are_independent() -> None:
    model = build_tiny()
    randomise(model)
    latent, timestep, context = inputs(batch=3)
    whole = model(latent, timestep, context)
    for i in range(3):
        one = model(latent[i : i + 1], timestep[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(one[0], whole[i], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    exact, model = build_tiny(), build_tiny(dtype=dtype)
    randomise(exact)
    model.load_state_dict(exact.state_dict())
    with torch.no_grad():
        out, expected = model(*inputs()), exact(*inputs())
    assert out.dtype == dtype
    assert (out.float() - expected).std() / expected.std() < 0.03


@pytest.mark.parametrize("lora", [None, {"r": 4}, {"r": 4, "lora_dropout": 0.5}])
def test_checkpointing_changes_nothing(lora: dict[str, Any] | None) -> None:
    model = build_tiny(lora=lora)
    randomise(model)
    results = []
    for checkpointed in (False, True):
        model.checkpoint_activations = checkpointed
        model.zero_grad()
        torch.manual_seed(0)  # for the adapters' dropout
        out = model(*inputs())
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


def test_checkpointing_with_frozen_inputs() -> None:
    """Adapters get gradients although nothing before the first block requires any."""
    model = build_tiny(lora={"r": 4}, checkpoint_activations=True)
    randomise(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("matrix_" in name)
    model(*inputs()).square().mean().backward()
    assert all((p.grad is not None) == ("matrix_" in name) for name, p in model.named_parameters())
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_block_compiles_to_one_graph(lora: dict[str, Any] | None) -> None:
    """No graph break (fullgraph), one graph for all layers, same results, same stored names."""
    model = build_tiny(lora=lora, num_layers=3)
    randomise(model)
    names = list(model.state_dict())
    eager = model(*inputs())
    eager.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.mixins["adaln_layer"].compile_blocks(backend="aot_eager")
    compiled = model(*inputs())
    compiled.square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(compiled, eager, rtol=0, atol=5e-6)
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-6, msg=name)


def test_compile_by_configuration_and_checkpointing_together() -> None:
    model = build_tiny(checkpoint_activations=True, compile_blocks=True)
    assert model.mixins["adaln_layer"]._block is not transformer_block
    randomise(model)
    model.mixins["adaln_layer"].compile_blocks(backend="aot_eager")
    plain = build_tiny()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        each(*inputs()).square().mean().backward()
    for mine, expected in zip(model.parameters(), plain.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, c: (x[:, :, :3], t, c), r"takes \(batch, frames, 4 channels, height, width\)"),
        (lambda x, t, c: (x[0], t, c), "noised_latent has shape"),
        (lambda x, t, c: (x, t[:1], c), r"timestep has shape \(1,\); expected \(2,\)"),
        (lambda x, t, c: (x, t, c[:, 1:]), r"context has shape \(2, 4, 24\); expected \(2, 5, 24\)"),
        (lambda x, t, c: (x, t, c[..., 1:]), "text_hidden_size"),
        (lambda x, t, c: (x[..., :7, :], t, c), r"patches \(1, 2, 2\); nearest legal: \(3, 8, 12\)"),
        (lambda x, t, c: (torch.cat([x, x], -1), t, c), r"position table \(3, 8, 12\); nearest legal: \(3, 8, 12\)"),
        (lambda x, t, c: (torch.cat([x, x], 1), t, c), r"\(6, 8, 12\) is larger"),
    ],
)
def test_inputs_that_do_not_fit(change: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        build_tiny()(*change(*inputs()))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_frames": 10}, r"num_frames is 10; it must be 4k \+ 1, e.g. 9 or 13"),
        ({"patch_size": [2, 2]}, "patch_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_attention_heads": 3}, "not a multiple of num_attention_heads"),
        ({"hidden_size": 72}, "multiple of 16"),
        ({"latent_height": 7}, "latent_height is 7.*nearest legal: 8"),
        ({"modules": {}}, "missing .*adaln_layer_config"),
        ({"modules": module_nodes() | {"lora": {}}}, r"unknown \['lora'\]"),
        ({"modules": module_nodes(lora={"r": 0})}, "rank must be at least 1"),
        ({"modules": module_nodes(lora={"r": 2, "lora_dropout": 1.0})}, "lora_dropout"),
    ],
)
def test_configurations_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tiny(**sizes)


def test_smaller_sizes_use_the_corner_of_the_table() -> None:
    model = build_tiny()
    frames, height, width = LATENT_GRID
    table = model.mixins["pos_embed"].pos_embedding[0, TEXT_LENGTH:].view(frames, height // 2, width // 2, -1)
    text, video = torch.zeros(1, TEXT_LENGTH, 64), torch.zeros(1, 2 * 3 * 4, 64)
    _, placed = model.mixins["pos_embed"].position_embedding_forward(text, video, (2, 3, 4))
    assert torch.equal(placed[0].view(2, 3, 4, 64), table[:2, :3, :4])
