"""The transformer on CUDA: the CPU's numbers, no host synchronisation, compiled blocks."""

from __future__ import annotations

import pytest
import torch
from cogvideox.transformer.rotary import rotate, rotation_matrices
from transformer.tiny_transformer import FAMILIES, build_tiny, family_inputs, randomise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_cpu(family: str) -> None:
    model = build_tiny(lora={"r": 4}, family=family)
    randomise(model)
    sample = family_inputs(family)
    with torch.no_grad():
        expected = model(*sample)
        out = model.cuda()(*(tensor.cuda() for tensor in sample)).cpu()
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("family", "resize"), [*((family, "slice") for family in FAMILIES), ("5b", "interpolate")])
def test_step_never_waits_for_the_device(family: str, resize: str, checkpointing: bool) -> None:
    """Also not at a size that it meets for the first time."""
    with torch.device("cuda"):
        model = build_tiny(
            lora={"r": 4}, family=family, resize=resize, dtype=torch.bfloat16, checkpoint_activations=checkpointing
        )
    first, other = ([tensor.cuda() for tensor in family_inputs(family, grid)] for grid in ((3, 8, 12), (3, 4, 8)))
    model(*first).float().square().mean().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(*other).float().square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation_equals_the_cpu_s(dtype: torch.dtype) -> None:
    """Values and gradients, at a size whose kernels run over many blocks: one rounding apart at most."""
    heads, upstream = torch.randn(2, 1, 3000, 4, 64).to(dtype)
    angles = torch.rand(3000, 32) * 90
    rotation = rotation_matrices(angles.cos(), angles.sin())
    results = []
    for device in ("cpu", "cuda"):
        given = heads.to(device).requires_grad_()
        out = rotate(given, rotation.to(device))
        in_place = out.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) if device == "cuda" else out
        in_place.backward(upstream.to(device))
        assert given.grad is not None
        results.append((in_place.detach().cpu(), given.grad.cpu()))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_offloaded_activations(lora: dict[str, int] | None) -> None:
    """Same gradients to the bit over several steps, and no input but a few blocks' on the device meanwhile."""
    with torch.device("cuda"):
        model = build_tiny(lora=lora, family="5b", num_layers=12, checkpoint_activations=True, offload_activations=True)
    randomise(model)
    sample = [tensor.cuda() for tensor in family_inputs("5b")]
    results, held = [], []
    for offloaded in (False, True, True):
        model.offload_activations, model._offload = offloaded, model._offload if offloaded else None
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        out = model(*sample)
        held.append(torch.cuda.memory_allocated() - before)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    assert max(held[1:]) < held[0] / 2


@pytest.mark.parametrize("family", ["2b", "5b"])
def test_compiled_blocks(family: str) -> None:
    with torch.device("cuda"):
        model = build_tiny(lora={"r": 4}, family=family)
    randomise(model)
    sample = [tensor.cuda() for tensor in family_inputs(family)]
    eager = model(*sample)
    model.mixins["adaln_layer"].compile_blocks()
    torch.testing.assert_close(model(*sample), eager, rtol=0, atol=2e-5)


def test_build_on_the_device_leaves_its_generator_alone() -> None:
    before = torch.cuda.get_rng_state()
    with torch.device("cuda"):
        build_tiny()
    assert torch.equal(torch.cuda.get_rng_state(), before)
