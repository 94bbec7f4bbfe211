"""Offloaded activations: the order of copies and waits, with a lane whose copies happen late; gradients to the bit."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from cogvideox.errors import ConfigError
from cogvideox.transformer.offload import ActivationOffload
from torch import Tensor
from transformer.tiny_transformer import build_tiny, family_inputs, randomise

LAYERS = 5


class SlowLane:
    """Copies happen when somebody waits for them, and no sooner: what is read too early is NaN."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self._queue: list[tuple[int, Tensor, Tensor]] = []
        self._marks = 0
        self.buffers: list[Tensor] = []

    def buffer(self, like: Tensor) -> Tensor:
        self.buffers.append(torch.full_like(like, torch.nan))
        return self.buffers[-1]

    def store(self, tensor: Tensor, host: Tensor) -> int:
        return self._enqueue("store", tensor, host)

    def fetch(self, host: Tensor, device: torch.device) -> tuple[Tensor, int]:
        tensor = torch.full_like(host, torch.nan)
        return tensor, self._enqueue("fetch", host, tensor)

    def _enqueue(self, what: str, source: Tensor, target: Tensor) -> int:
        self._marks += 1
        self._queue.append((self._marks, source, target))
        self.log.append((what, source.shape[1]))
        return self._marks

    def wait(self, mark: int, device: torch.device) -> None:
        self.log.append(("wait", 0))
        while self._queue and self._queue[0][0] <= mark:
            _, source, target = self._queue.pop(0)
            target.copy_(source)


def build(**options: Any) -> Any:
    model = build_tiny(num_layers=LAYERS, checkpoint_activations=True, offload_activations=True, **options)
    randomise(model)
    return model


def step(model: Any, sample: Any) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(0)  # for the adapters' dropout
    out = model(*sample)
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def check_equal(mine: list[Tensor], expected: list[Tensor]) -> None:
    for left, right in zip(mine, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("family", "lora"), [("2b", None), ("5b", {"r": 4}), ("5b_i2v", None), ("1.5_i2v", {"r": 4, "lora_dropout": 0.5})]
)
def test_gradients_are_the_same_to_the_bit(family: str, lora: dict[str, Any] | None) -> None:
    """Nothing is used before it has arrived, over steps that use the same buffers, with sizes that change between."""
    model = build(family=family, lora=lora)
    if lora:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("matrix_" in name)
    model._offload = ActivationOffload(lane := SlowLane())
    for size in ((3, 8, 12), (3, 8, 12), (2 if "1.5" in family else 1, 4, 8), (3, 8, 12)):
        size = (4, *size[1:]) if "1.5" in family and size[0] == 3 else size
        sample = family_inputs(family, size)
        mine = step(model, sample)
        assert not any(tensor.isnan().any() for tensor in mine)
        model.offload_activations, kept, model._offload = False, model._offload, None
        check_equal(mine, step(model, sample))
        model.offload_activations, model._offload = True, kept
    # Text and video of all blocks but the last; a second set for the second size.
    assert len(lane.buffers) == 2 * (LAYERS - 1) + (LAYERS - 1)


def test_on_the_cpu_nothing_moves() -> None:
    model, sample = build(family="5b"), family_inputs("5b")
    mine = step(model, sample)
    assert model._offload is not None and model._offload._lane is None
    model.offload_activations, model._offload = False, None
    check_equal(mine, step(model, sample))


def test_each_block_has_the_one_before_it_fetched() -> None:
    """Forward: a block's inputs leave at its start and are given up at the start of the next. Backward: fetched one
    block ahead."""
    model, sample = build(family="2b"), family_inputs("2b")
    model._offload = ActivationOffload(lane := SlowLane())
    out = model(*sample)
    stores = [("store", 5), ("store", 72)]
    waits = [("wait", 0), ("wait", 0)]
    fetches = [("fetch", 5), ("fetch", 72)]
    assert lane.log == stores + (LAYERS - 2) * (waits + stores) + waits
    lane.log.clear()
    out.square().mean().backward()
    # The last block is there and has its neighbour fetched; each one after it waits for what was asked for long ago.
    assert lane.log == fetches + (LAYERS - 2) * [("wait", 0), *fetches, ("wait", 0)] + waits


@pytest.mark.slow
def test_memory_that_is_held_meanwhile() -> None:
    """During the forward pass no block's input but the last one's and the one under way; none after the step."""
    model, sample = build(family="2b"), family_inputs("2b")
    model._offload = ActivationOffload(lane := SlowLane())
    alive: list[int] = []
    block = model.hooks["layer_forward"]

    def counting(text: Tensor, video: Tensor, *args: Any, **kwargs: Any) -> Any:
        in_host_memory = {x.untyped_storage()._cdata for x in lane.buffers}
        alive.append(len({x.untyped_storage()._cdata for x in tensors_of(video.shape)} - in_host_memory))
        return block(text, video, *args, **kwargs)

    model.hooks["layer_forward"] = counting
    model(*sample).square().mean().backward()
    model.offload_activations, model._offload = False, None
    forward, recomputed = alive[:LAYERS], alive[LAYERS:]
    assert max(forward) - forward[0] <= 1, forward
    alive.clear()
    model(*sample).square().mean().backward()
    assert alive[LAYERS - 1] - alive[0] == LAYERS - 1, "the check sees what is not offloaded"
    assert max(recomputed) < max(alive[LAYERS:])


def tensors_of(shape: torch.Size) -> list[Tensor]:
    """Tensors of a shape that anybody holds."""
    gc.collect()
    return [x for x in gc.get_objects() if type(x) is Tensor and x.shape == shape and x.dtype == torch.float32]


def test_after_a_backward_pass_that_broke_off() -> None:
    """What was under way arrives before the next forward pass writes anything."""
    model, sample = build(family="2b"), family_inputs("2b")
    expected = step(model, sample)
    model._offload = ActivationOffload(SlowLane())
    calls: Counter[str] = Counter()

    def fail_once(grad: Tensor) -> None:
        calls["grad"] += 1
        if calls["grad"] == 1:
            raise KeyError("on purpose")

    handle = model.transformer.layers[2].mlp.dense_h_to_4h.weight.register_hook(fail_once)
    with pytest.raises(KeyError, match="on purpose"):
        model(*sample).square().mean().backward()
    handle.remove()
    check_equal(step(model, sample), expected)


def test_two_forward_passes_before_their_backward_passes() -> None:
    model, sample = build(family="2b"), family_inputs("2b")
    expected = step(model, sample)
    model._offload = ActivationOffload(SlowLane())
    model.zero_grad()
    first, second = (model(*sample).square().mean() for _ in range(2))
    (first / 2).backward()
    (second / 2).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    for mine, theirs in zip(grads, expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_graph_that_is_kept_is_fetched_again() -> None:
    model, sample = build(family="2b"), family_inputs("2b")
    expected = step(model, sample)
    model._offload = ActivationOffload(SlowLane())
    loss = model(*sample).square().mean()
    for keep in (True, False):
        model.zero_grad()
        loss.backward(retain_graph=keep)
        check_equal([p.grad for p in model.parameters() if p.grad is not None], expected[1:])


def test_evaluation_moves_nothing() -> None:
    model, sample = build(family="2b"), family_inputs("2b")
    model._offload = ActivationOffload(lane := SlowLane())
    with torch.no_grad():
        model(*sample)
    assert not lane.log


def test_it_needs_checkpoints() -> None:
    with pytest.raises(ConfigError, match=r"offload_activations is true, which moves .* checkpoint_activations: true"):
        build_tiny(offload_activations=True)
