"""The transformer on CUDA: the CPU's numbers, no host synchronisation, compiled blocks."""

from __future__ import annotations

import pytest
import torch
from transformer.tiny_transformer import build_tiny, inputs, randomise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_equals_cpu() -> None:
    model = build_tiny(lora={"r": 4})
    randomise(model)
    with torch.no_grad():
        expected = model(*inputs())
        out = model.cuda()(*(tensor.cuda() for tensor in inputs())).cpu()
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_step_never_waits_for_the_device(checkpointing: bool) -> None:
    with torch.device("cuda"):
        model = build_tiny(lora={"r": 4}, dtype=torch.bfloat16, checkpoint_activations=checkpointing)
    sample = [tensor.cuda() for tensor in inputs()]
    model(*sample).float().square().mean().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(*sample).float().square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_blocks() -> None:
    with torch.device("cuda"):
        model = build_tiny(lora={"r": 4})
    randomise(model)
    sample = [tensor.cuda() for tensor in inputs()]
    eager = model(*sample)
    model.mixins["adaln_layer"].compile_blocks()
    torch.testing.assert_close(model(*sample), eager, rtol=0, atol=2e-5)


def test_build_on_the_device_leaves_its_generator_alone() -> None:
    before = torch.cuda.get_rng_state()
    with torch.device("cuda"):
        build_tiny()
    assert torch.equal(torch.cuda.get_rng_state(), before)
