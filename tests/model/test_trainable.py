"""What is frozen, and the report of it."""

from __future__ import annotations

import logging

import pytest
import tiny
from cogvideox.errors import ConfigError
from cogvideox.model.trainable import count, freeze
from model.parts import build


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


def trainable(model: object) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]


def test_all_leaves_the_adapters(family: tiny.TinyFamily) -> None:
    model = build(family, {"r": 4, "lora_alpha": 2.0})
    report = freeze(model, ["all"])
    assert trainable(model) and all(".matrix_" in name for name in trainable(model))
    # Two layers; q, k, v and dense each with A [4, 64] and B [64, 4].
    assert report.trainable == report.adapter == 2 * 4 * 2 * 4 * 64
    assert report.total == sum(p.numel() for p in model.parameters())
    assert report.text().endswith("LoRA rank 4, scale 0.5 (alpha / rank)") and "4,096 of" in report.text()


def test_vae_and_text_encoder_are_accepted_and_never_trained(family: tiny.TinyFamily) -> None:
    model = build(family)
    before = trainable(model)
    report = freeze(model, ["first_stage_model", "conditioner"])
    assert trainable(model) == before and report.lora_rank is None
    assert "LoRA" not in report.text()


def test_prefixes_freeze_a_part(family: tiny.TinyFamily) -> None:
    model = build(family)
    freeze(model, ["model.diffusion_model.time_embed", "model.diffusion_model.transformer.layers.0"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert any(".time_embed." in name for name in frozen) and any(".layers.0." in name for name in frozen)
    assert any(".layers.1." in name for name in trainable(model))


def test_training_both_adapters_and_base_is_announced(
    family: tiny.TinyFamily, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    report = freeze(build(family, {}), ["first_stage_model"])
    assert 0 < report.adapter < report.trainable
    assert "adapters and base weights are both trained" in caplog.text


def test_unknown_prefix(family: tiny.TinyFamily) -> None:
    with pytest.raises(ConfigError, match=r"nothing starts with 'diffusion'; a name is model.diffusion_model"):
        freeze(build(family), ["diffusion"])


def test_nothing_left_to_train(family: tiny.TinyFamily) -> None:
    with pytest.raises(ConfigError, match="leaves nothing to train: add lora_config"):
        freeze(build(family), ["all"])
    with pytest.raises(ConfigError, match="leaves nothing to train: remove a prefix"):
        freeze(build(family), ["model."])


def test_count_of_a_plain_model(family: tiny.TinyFamily) -> None:
    report = count(build(family))
    assert report.adapter == 0 and report.lora_scale is None
