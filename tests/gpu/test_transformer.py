"""The transformer on CUDA: the CPU's numbers, no host synchronisation, compiled blocks."""

from __future__ import annotations

import pytest
import torch
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
