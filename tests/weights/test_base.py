"""Checkpoints that hold only what was trained are completed from the base that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.base import LoraFacts, is_complete, lora_facts, missing_names, read_transformer
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.lora_map import is_adapter
from cogvideox.weights.sat_folder import fingerprint, read_checkpoint, write_checkpoint
from torch import Tensor
from transformer.tiny_transformer import build_tiny, randomise

TABLE = "mixins.pos_embed.pos_embedding"


def stored(seed: int = 0, lora: dict[str, Any] | None = None) -> dict[str, Tensor]:
    model = build_tiny(lora=lora)
    randomise(model, seed)
    return {TRANSFORMER_PREFIX + name: value for name, value in model.state_dict().items()}


def save(folder: Path, state: dict[str, Tensor], base: Path | None = None, **lora: float) -> Path:
    origin = None if base is None else {"path": str(base), "sha256": fingerprint(base)}
    write_checkpoint(folder, 1, state, {"base": origin, "lora": lora or None})
    return folder


def test_whole_checkpoint_needs_no_base(tmp_path: Path) -> None:
    weights = read_transformer(read_checkpoint(save(tmp_path / "a", stored())))
    assert weights.adapters == {}
    assert weights.lora is None
    assert weights.merged() is weights.plain
    assert is_complete(weights.plain)
    assert is_complete(weights.plain, 2)
    assert not is_complete(weights.plain, 3)
    assert weights.files == (tmp_path / "a" / "1" / "mp_rank_00_model_states.pt",)


@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 2.0}])
def test_integers_are_no_weights(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    """Merging and extracting would compute with them."""
    state = stored(lora=lora)
    name = next(name for name in state if (is_adapter(name) if lora else name.endswith("final_layer.linear.weight")))
    state[name] = state[name].to(torch.int8)
    relative = re.escape(name.removeprefix(TRANSFORMER_PREFIX))
    with pytest.raises(CheckpointError, match=rf"states\.pt stores 1 tensors as int8: {relative}\. Take"):
        read_transformer(read_checkpoint(save(tmp_path / "a", state)))


@pytest.mark.parametrize(
    "name",
    [
        "transformer.layers.1.mlp.dense_h_to_4h.weight",
        "transformer.layers.0.attention.dense.bias",
        "mixins.adaln_layer.query_layernorm_list.1.weight",
        "mixins.adaln_layer.key_layernorm_list.0.bias",
        "mixins.adaln_layer.adaLN_modulations.1.1.bias",
        "mixins.final_layer.linear.bias",
    ],
)
def test_a_hole_is_named(tmp_path: Path, name: str) -> None:
    """What converts with a hole is filled at random by the program that opens the result."""
    state = stored()
    del state[TRANSFORMER_PREFIX + name]
    with pytest.raises(
        CheckpointError, match=rf"states\.pt is not a whole transformer: it lacks 1 of .*: {re.escape(name)}$"
    ):
        read_transformer(read_checkpoint(save(tmp_path / "a", state)))


def test_a_base_with_a_hole(tmp_path: Path) -> None:
    adapters = {name: value for name, value in stored(2, {"r": 4}).items() if is_adapter(name)}
    whole = stored()
    holes = [name for name in whole if ".layers.1." in name]
    base = save(tmp_path / "base", {name: value for name, value in whole.items() if name not in holes})
    run = save(tmp_path / "run", adapters, base, r=4, alpha=4.0)
    expected = (
        rf"run.* on .*base.*: it lacks {len(holes)} of its tensors: transformer\.layers\.1.* and {len(holes) - 4} more"
    )
    with pytest.raises(CheckpointError, match=expected):
        read_transformer(read_checkpoint(run))


def test_what_only_some_families_have_is_wanted_whole() -> None:
    names = {name.removeprefix(TRANSFORMER_PREFIX) for name in stored()}
    lists = [f"mixins.adaln_layer.{kind}_layernorm_list." for kind in ("query", "key")]
    plain = {name for name in names if not name.startswith(tuple(lists))}
    assert missing_names(plain) == []
    assert missing_names(names - {f"{lists[1]}{i}.{p}" for i in (0, 1) for p in ("weight", "bias")}) == [
        f"{lists[1]}{i}.{p}" for i in (0, 1) for p in ("weight", "bias")
    ]
    assert missing_names({*names, "ofs_embed.0.weight"}) == [
        "ofs_embed.0.bias",
        "ofs_embed.2.weight",
        "ofs_embed.2.bias",
    ]
    assert len(missing_names(())) == 30


def test_what_is_no_transformer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a CogVideoX transformer in SAT layout"):
        read_transformer(read_checkpoint(save(tmp_path / "a", {"encoder.weight": torch.ones(2)})))


def test_full_fine_tuning_without_its_fixed_table_is_whole(tmp_path: Path) -> None:
    """Only what trains is saved; the base may have gone."""
    base = save(tmp_path / "base", stored())
    trained = {name: value for name, value in stored(1).items() if not name.endswith(TABLE)}
    run = save(tmp_path / "run", trained, base)
    (base / "1" / "mp_rank_00_model_states.pt").unlink()
    assert read_transformer(read_checkpoint(run)).plain.keys() == {
        name.removeprefix(TRANSFORMER_PREFIX) for name in trained
    }


def test_partly_trained_model_takes_the_rest_from_its_base(tmp_path: Path) -> None:
    first, second = stored(0), stored(1)
    trained = {name: value for name, value in second.items() if "layers.1." in name}
    base = save(tmp_path / "base", first)
    weights = read_transformer(read_checkpoint(save(tmp_path / "run", trained, base)))
    assert is_complete(weights.plain)
    for name, value in weights.plain.items():
        source = trained if TRANSFORMER_PREFIX + name in trained else first
        assert torch.equal(value, source[TRANSFORMER_PREFIX + name])
    assert len(weights.files) == 2


def test_adapters_and_their_base(tmp_path: Path) -> None:
    whole = stored(2, {"r": 4, "lora_alpha": 8.0})
    adapters = {name: value for name, value in whole.items() if is_adapter(name)}
    base = save(tmp_path / "base", stored())
    run = save(tmp_path / "run", adapters, base, r=4, alpha=8.0)
    weights = read_transformer(read_checkpoint(run))
    assert weights.lora == LoraFacts(4, 8.0)
    assert weights.lora.scaling == 2.0
    assert len(weights.adapters) == len(adapters)
    name = "transformer.layers.0.attention.dense.weight"
    key = "transformer.layers.0.attention.dense.matrix"
    expected = weights.plain[name] + 2.0 * weights.adapters[f"{key}_B.0"] @ weights.adapters[f"{key}_A.0"]
    torch.testing.assert_close(weights.merged()[name], expected)


def test_trained_further_from_a_run_with_adapters(tmp_path: Path) -> None:
    """A base that is itself adapters on a base: the newer adapters replace the older ones."""
    lora = {"r": 4, "lora_alpha": 8.0}
    older, newer = ({n: v for n, v in stored(seed, lora).items() if is_adapter(n)} for seed in (2, 3))
    base = save(tmp_path / "base", stored())
    first = save(tmp_path / "first", older, base, r=4, alpha=8.0)
    weights = read_transformer(read_checkpoint(save(tmp_path / "second", newer, first, r=4, alpha=8.0)))
    assert len(weights.files) == 3
    assert all(torch.equal(weights.adapters[n.removeprefix(TRANSFORMER_PREFIX)], v) for n, v in newer.items())


def test_a_base_that_was_moved(tmp_path: Path) -> None:
    """Any place that is given will do, when the file there has the recorded hash."""
    whole = stored(2, {"r": 4})
    base = save(tmp_path / "base", stored())
    run = save(tmp_path / "run", {name: each for name, each in whole.items() if is_adapter(name)}, base, r=4, alpha=4.0)
    other = save(tmp_path / "other", stored(1))
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(
        CheckpointError, match=r"needs its base \S*/base \(SHA-256 \w{12}\.\.\.\): it is not there\. Put it"
    ):
        read_transformer(read_checkpoint(run))
    places = (tmp_path / "nowhere", run, other)
    with pytest.raises(CheckpointError, match=r"\): \S*/other is another file \(SHA-256 \w{12}\.\.\.\)\. Put it back"):
        read_transformer(read_checkpoint(run), bases=places)
    assert read_transformer(read_checkpoint(run), bases=(*places, moved)).files[1].parents[1] == moved


def test_base_that_leads_in_a_circle(tmp_path: Path) -> None:
    adapters = {name: value for name, value in stored(2, {"r": 4}).items() if is_adapter(name)}
    first, second = tmp_path / "first", tmp_path / "second"
    write_checkpoint(first, 1, adapters, {"base": {"path": str(second)}})
    write_checkpoint(second, 1, adapters, {"base": {"path": str(first)}})
    with pytest.raises(CheckpointError, match="leads back to itself"):
        read_transformer(read_checkpoint(first))


def test_rank_that_contradicts_the_matrices(tmp_path: Path) -> None:
    whole = stored(2, {"r": 4})
    run = save(tmp_path / "run", whole, r=8, alpha=1.0)
    with pytest.raises(CheckpointError, match=r"LoRA matrices have rank 4, and it says 8"):
        lora_facts(read_checkpoint(run))
    mixed = {**whole, **{n: v for n, v in stored(2, {"r": 8}).items() if ".layers.0." in n}}
    with pytest.raises(CheckpointError, match=r"ranks \[4, 8\]; SAT's LoRA has one"):
        lora_facts(read_checkpoint(save(tmp_path / "mixed", mixed)))


def test_alpha_is_one_unless_stated(tmp_path: Path) -> None:
    run = save(tmp_path / "run", stored(2, {"r": 4}))
    assert lora_facts(read_checkpoint(run)) == LoraFacts(4, 1.0)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("rank 4", "'lora' of its entry 'cogvideox' is a str, a dict is expected"),
        ({"alpha": "eight"}, "states alpha 'eight', which is no number above 0"),
        ({"alpha": 0.0}, r"states alpha 0\.0, which is no number above 0"),
    ],
)
def test_settings_of_adapters_that_are_refused(lora: object, message: str, tmp_path: Path) -> None:
    name = "transformer.layers.0.attention.dense.matrix_A.0"
    write_checkpoint(tmp_path, 1, {name: torch.ones(4, 8)}, {"lora": lora})
    with pytest.raises(CheckpointError, match=rf"1/mp_rank_00_model_states\.pt: .*{message}"):
        lora_facts(read_checkpoint(tmp_path))
    write_checkpoint(tmp_path, 2, {name: torch.ones(4)}, {})
    with pytest.raises(CheckpointError, match=r"matrix_A\.0 has the shape \[4\]; a LoRA's are \[rank, width\]"):
        lora_facts(read_checkpoint(tmp_path))
