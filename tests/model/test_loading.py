"""Weights into a model: whole checkpoints, adapters that name their base, and bases that have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cogvideox.errors import CheckpointError
from cogvideox.model.build import draft_model
from cogvideox.model.loading import base_reference, check_transformer, load_transformer, read_lora
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.weights.base import is_complete
from cogvideox.weights.families import POSITION_TABLE, TRANSFORMER_PREFIX
from cogvideox.weights.sat_folder import fingerprint, write_checkpoint
from model.parts import batch, build, model_config

LORA = {"r": 4, "lora_alpha": 4.0}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


def adapters_of(model: VideoDiffusion) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".matrix_" in name}


def save_adapters(model: VideoDiffusion, folder: Path, base: dict[str, str] | None, **lora: Any) -> Path:
    write_checkpoint(folder, 10, adapters_of(model), {"lora": {"r": 4, "alpha": 4.0, **lora}, "base": base})
    return folder


@pytest.fixture
def trained(family: tiny.TinyFamily, tmp_path: Path) -> tuple[VideoDiffusion, Path]:
    """A model with adapters on the family's base, and the folder with the adapters alone."""
    model = build(family, LORA)
    load_transformer(model, family.transformer)
    return model, save_adapters(model, tmp_path / "lora", base_reference(family.transformer))


def test_whole_checkpoint(family: tiny.TinyFamily) -> None:
    model = build(family)
    report = load_transformer(model, family.transformer)
    stored = tiny.read_states(family.transformer)
    state = model.state_dict()
    assert len(report.loaded) == len(stored) and all(torch.equal(state[name], stored[name]) for name in stored)


def test_base_into_a_model_with_lora_reports_new_adapters(family: tiny.TinyFamily) -> None:
    model = build(family, LORA, randomise=False)
    report = load_transformer(model, family.transformer)
    assert len(report.new_adapter) == 16 and not report.missing
    plain = build(family)
    load_transformer(plain, family.transformer)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch()), plain.eval()(batch()))


def test_adapters_bring_their_base(trained: tuple[VideoDiffusion, Path], family: tiny.TinyFamily) -> None:
    model, folder = trained
    again = build(family, LORA, randomise=False)
    load_transformer(again, folder)
    before, after = model.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_lora(folder).rank == 4 and read_lora(folder).alpha == 4.0
    assert read_lora(family.transformer) is None


def test_reference_names_the_base_of_adapters(trained: tuple[VideoDiffusion, Path], family: tiny.TinyFamily) -> None:
    _, folder = trained
    direct = base_reference(family.transformer)
    assert direct["sha256"] == fingerprint(family.transformer) and Path(direct["path"]).is_absolute()
    assert base_reference(folder) == direct


def test_base_that_changed_is_refused(
    family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path], tmp_path: Path
) -> None:
    model, _ = trained
    base = {**base_reference(family.transformer), "sha256": "0" * 64}
    folder = save_adapters(model, tmp_path / "changed", base)
    with pytest.raises(CheckpointError, match=r"that file has changed since \(SHA-256 .*\. Put it back, or say"):
        load_transformer(build(family, LORA), folder)


def test_base_that_is_gone_is_named(
    family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path], tmp_path: Path
) -> None:
    folder = save_adapters(trained[0], tmp_path / "gone", {"path": "/nowhere/model.pt", "sha256": ""})
    with pytest.raises(
        CheckpointError, match=r"needs its base /nowhere/model.pt .*: it is not there\. Put it back, or say where"
    ):
        load_transformer(build(family, LORA), folder)


def test_adapters_without_a_base_are_refused(
    family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path], tmp_path: Path
) -> None:
    folder = save_adapters(trained[0], tmp_path / "orphan", None)
    with pytest.raises(CheckpointError, match="LoRA adapters only"):
        load_transformer(build(family, LORA), folder)


def test_other_strength_than_trained_is_refused(family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path]) -> None:
    with pytest.raises(CheckpointError, match="has lora_alpha 4, the configuration says 1"):
        load_transformer(build(family, {"r": 4, "lora_alpha": 1.0}), trained[1])


def test_other_rank_is_refused(family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path]) -> None:
    with pytest.raises(CheckpointError, match="rank"):
        load_transformer(build(family, {"r": 2, "lora_alpha": 4.0}), trained[1])


def test_adapters_need_a_model_that_has_some(family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path]) -> None:
    with pytest.raises(CheckpointError, match="LoRA adapters of rank 4, but the model has none: add lora_config"):
        load_transformer(build(family), trained[1])


@pytest.mark.parametrize(("trained_on", "used_with"), [("5b", "5b_i2v"), ("1.5_i2v", "1.5"), ("5b", "2b")])
def test_adapters_of_another_family_are_refused(
    family: tiny.TinyFamily, tmp_path: Path, trained_on: str, used_with: str
) -> None:
    """Adapters of equal widths look alike: their base tells."""
    other = tiny.TinyFamily(tmp_path)
    tiny.write_transformer(other, family=trained_on)
    folder = save_adapters(build(family, LORA), tmp_path / "lora", base_reference(other.transformer))
    with pytest.raises(CheckpointError, match=r"the base of .*lora/10/.* can't be loaded: .*but the configuration des"):
        load_transformer(build(family, LORA, family=used_with), folder)


def test_a_lora_of_another_size_is_named_before_its_alpha(family: tiny.TinyFamily, tmp_path: Path) -> None:
    """All that a file without a base tells is how many layers of which width it adapts: here those of 5B."""
    lora = {
        f"{TRANSFORMER_PREFIX}transformer.layers.{layer}.attention.dense.matrix_{kind}.0": torch.zeros(shape)
        for layer in range(42)
        for kind, shape in (("A", (4, 3072)), ("B", (3072, 4)))
    }
    folder = tmp_path / "other"
    write_checkpoint(folder, 1, lora, {"lora": {"r": 4, "alpha": 1.0}})
    expected = (
        r"holds a LoRA for 42 layers of width 3072, but the configuration describes 2 of width 64; it is for "
        r"CogVideoX-5B or .*: use configs/cogvideox_5b_lora\.yaml or .*1\.5_5b_i2v_lora\.yaml"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_transformer(build(family, LORA), folder)


def test_a_lora_of_another_family_says_so_although_alpha_differs(tmp_path: Path, family: tiny.TinyFamily) -> None:
    other = tiny.write_family(tmp_path / "5b", num_clips=0, family="5b")
    folder = save_adapters(build(other, LORA, family="5b"), tmp_path / "lora", base_reference(other.transformer))
    expected = "can't be loaded: .* holds CogVideoX-5B layout .* but the configuration describes CogVideoX-2B"
    with pytest.raises(CheckpointError, match=expected):
        load_transformer(build(family, {"r": 4, "lora_alpha": 1.0}), folder)


@pytest.mark.parametrize(("name", "left_out"), [("5b_i2v", POSITION_TABLE), ("1.5_i2v", "ofs_embed.")])
def test_what_only_the_model_knows_of_comes_from_the_base(
    family: tiny.TinyFamily, tmp_path: Path, name: str, left_out: str
) -> None:
    """No name in the file tells that it lacks a learned table, or all of an embedding that some families have."""
    other = tiny.TinyFamily(tmp_path)
    tiny.write_transformer(other, family=name)
    whole = tiny.read_states(other.transformer)
    part = {key: value + 1 for key, value in whole.items() if not key.startswith(TRANSFORMER_PREFIX + left_out)}
    assert len(part) < len(whole)
    assert is_complete({key.removeprefix(TRANSFORMER_PREFIX) for key in part})
    write_checkpoint(tmp_path / "part", 10, part, {"base": base_reference(other.transformer)})
    model = build(family, family=name)
    load_transformer(model, tmp_path / "part")
    state = model.state_dict()
    assert all(torch.equal(state[key], part.get(key, whole[key])) for key in whole)


def test_bases_in_a_circle_end(family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path], tmp_path: Path) -> None:
    file = tmp_path / "circle" / "10" / "mp_rank_00_model_states.pt"
    base = {"path": str(file), "sha256": None}
    save_adapters(trained[0], tmp_path / "circle", base)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="leads back to itself"):
        load_transformer(build(family, LORA), tmp_path / "circle")


def test_missing_checkpoint(family: tiny.TinyFamily) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at /nowhere"):
        load_transformer(build(family), "/nowhere")


def draft(family: tiny.TinyFamily, lora: dict[str, Any] | None = None, **network: Any) -> VideoDiffusion:
    config = model_config(family, lora)
    config.network_config["params"].update(network)
    return draft_model(config, dtype=torch.float32, seed=0, weights_follow=True)


def test_a_draft_knows_what_fits_it(family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path]) -> None:
    for model in (draft(family), draft(family, LORA)):
        check_transformer(model, family.transformer)
        assert model.device.type == "meta"
    check_transformer(draft(family, LORA), trained[1])


@pytest.mark.parametrize("case", ["layers", "width", "alpha", "adapters"])
def test_a_draft_is_refused_in_the_words_of_loading(
    case: str, family: tiny.TinyFamily, trained: tuple[VideoDiffusion, Path], tmp_path: Path
) -> None:
    model, path = {
        "layers": (draft(family, num_layers=3), family.transformer),
        "width": (draft(family, time_embed_dim=64), family.transformer),
        "alpha": (draft(family, {"r": 4, "lora_alpha": 8.0}), tmp_path / "whole"),
        "adapters": (draft(family), trained[1]),
    }[case]
    write_checkpoint(tmp_path / "whole", 10, trained[0].state_dict(), {"lora": {"r": 4, "alpha": 4.0}, "base": None})
    with pytest.raises(CheckpointError) as early:
        check_transformer(model, path)
    model.transformer.to_empty(device="cpu")
    with pytest.raises(CheckpointError) as late:
        load_transformer(model, path)
    assert str(early.value) == str(late.value)
