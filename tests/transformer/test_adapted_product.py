"""A layer and its adapters in one function, against torch's own operators and numerical gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from cogvideox.transformer.adapted_product import adapted_product
from torch import Tensor

SCALE = 0.375


def plain(
    tokens: Tensor, dropped: Tensor | None, weight: Tensor, bias: Tensor | None, down: Tensor, *ups: Tensor
) -> tuple[Tensor, ...]:
    """The same by torch's operators."""
    whole = F.linear(tokens, weight, bias).chunk(len(ups), -1)
    low = F.linear(tokens if dropped is None else dropped, down).chunk(len(ups), -1)
    return tuple(base + SCALE * F.linear(each, up) for base, each, up in zip(whole, low, ups, strict=True))


def operands(
    parts: int, *, dropout: bool = False, bias: bool = True, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()

    tokens = draw(2, 5, 6)
    dropped = draw(2, 5, 6) if dropout else None
    ups = [draw(4, 3) for _ in range(parts)]
    return [tokens, dropped, draw(4 * parts, 6), draw(4 * parts) if bias else None, draw(3 * parts, 6), *ups]


def ours(
    tokens: Tensor, dropped: Tensor | None, weight: Tensor, bias: Tensor | None, down: Tensor, *ups: Tensor
) -> tuple[Tensor, ...]:
    return adapted_product(tokens, dropped, weight, bias, down, ups, SCALE)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor]:
    wanted = [each for each in inputs if each is not None and each.requires_grad]
    torch.manual_seed(1)
    upstream = [torch.randn(out.shape, dtype=torch.float64).to(out.dtype) for out in outputs]
    return list(torch.autograd.grad(outputs, wanted, upstream))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("dropout", "bias"), [(False, True), (True, True), (False, False)])
def test_values_and_gradients(parts: int, dropout: bool, bias: bool) -> None:
    """All of them at once, the base's weight and bias too."""
    inputs = operands(parts, dropout=dropout, bias=bias)
    mine, expected = ours(*inputs), plain(*inputs)
    assert len(mine) == parts and all(part.is_contiguous() for part in mine)
    for pairs in (
        zip(mine, expected, strict=True),
        zip(gradients(mine, inputs), gradients(expected, inputs), strict=True),
    ):
        for left, right in pairs:
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [False, True])
def test_numerical_gradients(dropout: bool) -> None:
    inputs = operands(3, dropout=dropout, dtype=torch.float64)
    assert torch.autograd.gradcheck(ours, inputs)


@pytest.mark.parametrize("trained", [("tokens", "adapters"), ("adapters",), ("tokens",), ("down",), ("base",)])
def test_only_what_is_trained_gets_gradients(trained: tuple[str, ...]) -> None:
    """The first layer's tokens need none with adapters; in sampling nothing does."""
    names = ["tokens", "dropped", "base", "base", "down", "up", "up", "up"]
    inputs = operands(3)
    for name, each in zip(names, inputs, strict=True):
        if each is not None:
            each.requires_grad_(name in trained or ("adapters" in trained and name in ("down", "up")))
    found = gradients(ours(*inputs), inputs)
    for mine, expected in zip(found, gradients(plain(*inputs), inputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_bf16_is_as_exact_as_torch_s_operators() -> None:
    """Fewer roundings on the way: the mean error against float64 is not larger, forward or backward."""
    torch.manual_seed(0)
    shapes = [(1, 300, 128), None, (384, 128), (384,), (96, 128), *[(128, 32)] * 3]
    inputs = [None if shape is None else torch.randn(shape).mul(0.3).bfloat16().requires_grad_() for shape in shapes]
    exact = [None if each is None else each.detach().double().requires_grad_() for each in inputs]
    reference = plain(*exact)
    reference = [*reference, *gradients(reference, exact)]
    errors = []
    for form in (ours, plain):
        outputs = form(*inputs)
        found = [*outputs, *gradients(outputs, inputs)]
        errors.append([(x.double() - y).abs().mean().item() for x, y in zip(found, reference, strict=True)])
    assert max(mine / theirs for mine, theirs in zip(*errors, strict=True)) < 1.02, errors


def test_it_writes_into_nothing_that_was_given() -> None:
    inputs = operands(3, dropout=True)
    copies = [None if each is None else each.detach().clone() for each in inputs]
    gradients(ours(*inputs), inputs)
    assert all(a is None or torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
