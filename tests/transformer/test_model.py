"""The assembled transformer: build without side effects, checkpointing, compiling, checks."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cogvideox.errors import ConfigError, ShapeError
from cogvideox.transformer.block import transformer_block
from cogvideox.transformer.compiled_block import MOST_GRAPHS
from processes import run_processes
from sat.model.base_model import BaseModel
from transformer.tiny_transformer import FAMILIES, build_tiny, family_inputs, inputs, module_nodes, randomise

from sat import mpu


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


def _groups_around_a_build() -> list[tuple[bool, bool, int]]:
    """Whether (a process group, SAT's groups) run after a build without one, and after a build under one; and how many
    threads more there are than before."""
    found = []
    for runs_already in (False, True):
        if runs_already:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        build_tiny()(*inputs())
        threads = len(os.listdir("/proc/self/task"))
        build_tiny()(*inputs())
        more = len(os.listdir("/proc/self/task")) - threads
        found.append((dist.is_initialized(), mpu.model_parallel_is_initialized(), more))
    return found


def test_a_build_leaves_process_groups_as_they_were() -> None:
    """In a process of its own: in this one the group of an earlier test may live on, as it does in a run."""
    assert run_processes(_groups_around_a_build, 1) == [[(False, False, 0), (True, False, 0)]]


def test_forward_needs_no_process_group_and_keeps_its_inputs() -> None:
    model = build_tiny()
    randomise(model)
    sample = inputs()
    copies = [tensor.clone() for tensor in sample]
    out = model(*sample)
    assert out.shape == sample[0].shape
    assert all(torch.equal(a, b) for a, b in zip(sample, copies, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_batch_are_independent(family: str) -> None:
    model = build_tiny(family=family)
    randomise(model)
    latent, timestep, context = family_inputs(family)
    whole = model(latent, timestep, context)
    for i in range(2):
        one = model(latent[i : i + 1], timestep[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(one[0], whole[i], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision(family: str, dtype: torch.dtype) -> None:
    exact, model = build_tiny(family=family), build_tiny(family=family, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    randomise(exact)
    model.load_state_dict(exact.state_dict())
    with torch.no_grad():
        out, expected = model(*family_inputs(family)), exact(*family_inputs(family))
    assert out.dtype == dtype
    assert (out.float() - expected).std() / expected.std() < 0.03


@pytest.mark.parametrize(
    ("family", "lora"),
    [*((family, None) for family in FAMILIES), ("2b", {"r": 4}), ("1.5_i2v", {"r": 4, "lora_dropout": 0.5})],
)
def test_checkpointing_changes_nothing(family: str, lora: dict[str, Any] | None) -> None:
    model = build_tiny(lora=lora, family=family)
    randomise(model)
    results = []
    for checkpointed in (False, True):
        model.checkpoint_activations = checkpointed
        model.zero_grad()
        torch.manual_seed(0)  # for the adapters' dropout
        out = model(*family_inputs(family))
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["2b", "5b_i2v"])
def test_checkpointing_with_frozen_inputs(family: str) -> None:
    """Adapters get gradients although nothing before the first block requires any."""
    model = build_tiny(lora={"r": 4}, family=family, checkpoint_activations=True)
    randomise(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("matrix_" in name)
    model(*family_inputs(family)).square().mean().backward()
    assert all((p.grad is not None) == ("matrix_" in name) for name, p in model.named_parameters())
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("family", "lora"), [("2b", {"r": 4}), ("1.5_i2v", None)])
def test_block_compiles_to_one_graph(family: str, lora: dict[str, Any] | None) -> None:
    """No graph break (fullgraph), one graph for all layers, same results, same stored names."""
    model = build_tiny(lora=lora, family=family, num_layers=3)
    randomise(model)
    names = list(model.state_dict())
    eager = model(*family_inputs(family))
    eager.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.mixins["adaln_layer"].compile_blocks(backend="aot_eager")
    compiled = model(*family_inputs(family))
    compiled.square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(compiled, eager, rtol=0, atol=5e-6)
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["2b", "5b", "5b_i2v"])
def test_few_graphs_serve_all_shapes(family: str) -> None:
    """The first layer's input, a view of the embeddings, needs none of its own."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build_tiny(family=family)
    randomise(model)
    plain = build_tiny(family=family)
    plain.load_state_dict(model.state_dict())
    model.mixins["adaln_layer"].compile_blocks(backend="eager")
    with torch.no_grad():
        for size in ((3, 8, 12), (3, 4, 8)):
            for sample in batches(family, size, (2, 1, 4, 3)):
                torch.testing.assert_close(model(*sample), plain(*sample), rtol=0, atol=5e-6)
    # The first size, batches of one at the other, and larger batches.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == model.mixins["adaln_layer"]._block.num_graphs <= 3


def test_graphs_of_adapters_are_bounded_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing before the first layer needs a gradient: that and evaluation have graphs of their own, for whatever size
    and order, with checkpoints and without."""
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    caplog.set_level(logging.INFO)
    torch._dynamo.reset()
    model = build_tiny(lora={"r": 2}, family="5b", checkpoint_activations=True)
    randomise(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("matrix_" in name)
    model.mixins["adaln_layer"].compile_blocks(backend="eager")
    block = model.mixins["adaln_layer"]._block
    seen = []
    for checkpointed in (True, False):
        model.checkpoint_activations = checkpointed
        for grad in (False, True):
            for size in ((3, 8, 12), (3, 4, 8), (2, 4, 6)):
                for sample in batches("5b", size, (2, 1, 3)):
                    with torch.set_grad_enabled(grad):
                        out = model(*sample)
                    if grad:
                        out.square().mean().backward()
            seen.append(block.num_graphs)
    assert seen == [3, 9, 9, 9] and MOST_GRAPHS == 9
    lines = [record for record in caplog.records if "torch.compile" in record.message]
    assert [record.levelname for record in lines] == ["INFO", "WARNING", "WARNING"] * 2
    assert "1 graphs of the block by now (batch 2, 72 video tokens, without gradients)" in lines[0].message
    assert "another size (batch 1, 72 video tokens, without gradients): 2 graphs" in lines[1].message
    assert "9 graphs of the block by now, at most 9" in lines[-1].message


def test_one_size_has_one_line_in_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    caplog.set_level(logging.INFO)
    torch._dynamo.reset()
    model = build_tiny(family="1.5")
    model.mixins["adaln_layer"].compile_blocks(backend="eager")
    for _ in range(2):
        model(*family_inputs("1.5")).mean().backward()
    lines = [record for record in caplog.records if "torch.compile" in record.message]
    assert [record.levelname for record in lines] == ["INFO"]


def test_torch_without_an_argument_for_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_compile(model: Any, *, fullgraph: bool, backend: Any) -> Any:
        return model

    monkeypatch.setattr(torch, "compile", old_compile)
    for before, after in ((8, 64), (100, 100)):
        with torch._dynamo.config.patch(cache_size_limit=before):
            build_tiny(compile_blocks=True)
            assert torch._dynamo.config.cache_size_limit == after


def batches(
    family: str, size: tuple[int, int, int], counts: tuple[int, ...]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inputs of one size in batches of so many."""
    for count in counts:
        latent, timestep, context = family_inputs(family, size)
        latent, timestep, context = (torch.cat([x, x])[:count] for x in (latent, timestep, context))
        yield latent, timestep, context


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
        ({"num_frames": 10}, r"num_frames must be 4k \+ 1, not 10; nearest: 9 or 13"),
        ({"patch_size": [2, 2]}, "patch_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_attention_heads": 3}, "not a multiple of num_attention_heads"),
        ({"hidden_size": 72}, "multiple of 16"),
        ({"latent_height": 7}, "latent_height is 7.*nearest legal: 8"),
        ({"in_channels": 2}, "in_channels is 2, fewer than out_channels 4; write 4, or 8 for image to video"),
        ({"ofs_embed_dim": 16}, "ofs_embed_dim is 16; .* must be time_embed_dim 32, or null"),
        ({"modules": {}}, "missing .*adaln_layer_config"),
        ({"modules": module_nodes() | {"lora": {}}}, r"unknown \['lora'\]"),
        ({"modules": module_nodes(lora={"r": 0})}, "rank must be at least 1"),
        ({"modules": module_nodes(lora={"r": 2, "lora_dropout": 1.0})}, "lora_dropout"),
        ({"modules": module_nodes(lora={"r": 2, "lora_alpha": 0.0})}, r"lora_alpha is 0\.0; it must be above 0"),
    ],
)
def test_configurations_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tiny(**sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_of_a_family(family: str) -> None:
    """An I2V network refuses the bare latent, a T2V network one with an image latent behind it."""
    model = build_tiny(family=family)
    is_i2v = family.endswith("i2v")
    assert model.network.image_channels == (4 if is_i2v else 0)
    other = inputs((2, 8, 12), channels=4 if is_i2v else 8)
    takes = r"8 channels, height, width\), the last 4 .* image" if is_i2v else r"4 channels, height, width\)$"
    with pytest.raises(ShapeError, match=takes):
        model(*other)


def test_ofs_is_embedded_like_the_timestep() -> None:
    """The constant (2.0 by default) is added to the time embedding, so its value counts, for every sample alike."""
    model = build_tiny(family="1.5_i2v")
    randomise(model)
    assert model.ofs == 2.0
    sample = family_inputs("1.5_i2v")
    before = model(*sample)
    model.ofs = 100.0
    assert ((model(*sample) - before).abs().amax((1, 2, 3, 4)) > 1e-3).all()
    model.ofs = 2.0
    before.square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.ofs_embed.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_is_trained(family: str) -> None:
    """The position table that SAT makes and rotary models store is unused: frozen, so that no engine waits for it."""
    model = build_tiny(family=family)
    randomise(model)
    model(*family_inputs(family)).square().mean().backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    unused = "mixins.pos_embed.pos_embedding" if family == "2b" else "transformer.position_embeddings.weight"
    assert frozen == {unused}
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
