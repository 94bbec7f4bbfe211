"""Caption dropout and the unconditional context."""

from __future__ import annotations

import pytest
import torch
from cogvideox.errors import ConfigError
from cogvideox.text.conditioner import Conditioner
from cogvideox.text.encoders import T5Encoder
from text.tiny_t5 import build_tiny_t5

CAPTIONS = ["a red square", "the blue circle", "up"]


@pytest.fixture(scope="module")
def conditioner(tmp_path_factory: pytest.TempPathFactory) -> Conditioner:
    folder = build_tiny_t5(tmp_path_factory.mktemp("t5") / "t5")
    return Conditioner(T5Encoder(str(folder), max_length=12))


def test_dropped_captions_become_exact_zeros(conditioner: Conditioner) -> None:
    full = conditioner.encode(CAPTIONS)
    context = conditioner.encode(CAPTIONS, torch.tensor([True, False, True]))
    assert torch.equal(context[[0, 2]], full[[0, 2]])
    assert (context[1] == 0).all() and not (full[1] == 0).all()


def test_dropping_removes_values_that_are_not_finite() -> None:
    class Broken(torch.nn.Module):
        """An encoder that overflows."""

        def forward(self, captions: list[str]) -> torch.Tensor:
            return torch.full((len(captions), 2, 3), torch.inf)

    assert (Conditioner(Broken()).encode(["x"], torch.tensor([False])) == 0).all()


def test_null_context_is_zeros_and_not_the_empty_caption(conditioner: Conditioner) -> None:
    context = conditioner.encode(CAPTIONS).bfloat16()
    null = conditioner.null_context(2, context)
    assert null.shape == (2, 12, 16) and null.dtype == torch.bfloat16 and (null == 0).all()
    assert not (conditioner.encode([""]) == 0).all()


def test_sizes_and_counts_come_from_the_encoder(conditioner: Conditioner) -> None:
    assert (conditioner.width, conditioner.max_length) == (16, 12)
    assert conditioner.count_tokens(CAPTIONS) == conditioner.encoder.count_tokens(CAPTIONS)
    assert conditioner.move("cpu", torch.bfloat16).encode(CAPTIONS).dtype == torch.bfloat16
    conditioner.move("cpu", torch.float32)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_dropout_is_a_probability(share: float) -> None:
    with pytest.raises(ConfigError, match=f"caption_dropout is {share}, must be between 0 and 1"):
        Conditioner(torch.nn.Identity(), caption_dropout=share)
