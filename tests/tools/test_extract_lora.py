"""An extracted adapter is the nearest of its rank, exact for a change of that rank, and says what it leaves out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cogvideox.conversion.lora.extract import decompose
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.lora_file import read_adapter
from cogvideox.weights.sat_folder import fingerprint, read_checkpoint, write_checkpoint
from extract_lora import main
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import PREFIX, RANK, Checkpoints
from torch import Tensor

ATTENTION = ("attention.query_key_value.weight", "attention.dense.weight")


def extract(finetuned: Path, output: Path, *arguments: Any) -> Path:
    main([str(finetuned), "--output_path", str(output), *map(str, arguments)])
    return output


def fine_tuned(checkpoints: Checkpoints, folder: Path, change: dict[str, Tensor], named_base: bool = True) -> Path:
    """The base plus changes, by the end of a name."""
    base = checkpoints.family.transformer
    module = {
        name: value + next((each for end, each in change.items() if name.endswith(end)), torch.zeros(()))
        for name, value in read_checkpoint(base).module.items()
    }
    origin = {"path": str(base), "sha256": fingerprint(base)} if named_base else None
    write_checkpoint(folder, 3, module, {"base": origin})
    return folder


def error(change: Tensor, a: Tensor, b: Tensor) -> float:
    """Frobenius norm of what is missing, without rounding errors of its own."""
    return (change.double() - b.double() @ a.double()).norm().item()


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 12), size=st.integers(12, 40), scale=st.floats(1e-4, 1e3), seed=st.integers(0, 9))
def test_exact_for_a_change_of_that_rank(rank: int, size: int, scale: float, seed: int) -> None:
    """LAPACK's error is a modest multiple of size * eps; rounding the factors, whose norms multiply to at most
    sqrt(rank) times the product's, adds eps for each."""
    generator = torch.Generator().manual_seed(seed)
    b, a = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((size, rank), (rank, size)))
    for dtype in (torch.float64, torch.float32):
        change = (scale * b @ a).to(dtype)
        limit = (size + 2 * rank**0.5) * torch.finfo(dtype).eps
        for fast in (False, True):
            found_a, found_b = decompose(change, rank, fast=fast)
            assert found_a.shape == (rank, size) and found_b.shape == (size, rank)
            assert error(change, found_a, found_b) <= limit * change.norm()


@pytest.mark.parametrize("rank", [4, 32])
def test_nearest_of_its_rank(rank: int) -> None:
    """The error is what the singular values behind the rank say; quick: at most 1 % more, on the flattest spectrum."""
    change = torch.randn(320, 320, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(change.double())
    smallest = values[rank:].square().sum().sqrt().item()
    for fast, limit in ((False, 1 + 1e-6), (True, 1.01)):
        a, b = decompose(change, rank, fast=fast)
        assert smallest * (1 - 1e-12) <= error(change, a, b) <= smallest * limit, "nothing of this rank is nearer"
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-4), "split evenly"


@pytest.mark.parametrize("flags", [(), ("--fast",)])
def test_lora_that_was_merged_comes_back(flags: tuple[str, ...], checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A run with adapters counts as merged, so its change has their rank: extracted exactly, at any higher rank too."""
    for rank in (RANK, RANK + 3):
        out = extract(checkpoints.run, tmp_path / str(rank), "--rank", rank, *flags)
        first, second = read_adapter(checkpoints.run), read_adapter(out)
        assert (second.lora.rank, second.lora.alpha) == (rank, rank)
        for name in first.matrices:
            if ".matrix_A." in name:
                pairs = [(each.matrices[name], each.matrices[name.replace("_A.", "_B.")]) for each in (first, second)]
                (a, b), (found_a, found_b) = pairs
                expected = first.lora.scaling * b @ a
                # fp32 sums with the base's weights round the change itself; its entries are about one here
                assert (expected - found_b @ found_a).norm() <= 2e-6 * expected.norm()


def test_report_and_manifest(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """One matrix of norm 8 in q, one of norm 6 in the MLP: 36 of 100 outside."""
    change = torch.zeros(3 * 64, 64)
    change[:8, :8] = torch.eye(8) * 8**0.5
    mlp = torch.zeros(4 * 64, 64)
    mlp[0, 0] = 6.0
    run = fine_tuned(
        checkpoints,
        tmp_path / "run",
        {"layers.0.attention.query_key_value.weight": change, "layers.1.mlp.dense_h_to_4h.weight": mlp},
    )
    out = extract(run, tmp_path / "out", "--rank", 6)
    text = capsys.readouterr().out
    assert "attention q                                64.0%        5.00e-01" in text
    assert "attention out                               0.0%        0.00e+00" in text
    assert "MLP                                        36.0%        left out" in text
    assert "36.0% of the change lies outside the layers that LoRA adapts" in text
    manifest = json.loads((out / "conversion.json").read_text())
    assert manifest["share_outside"] == pytest.approx(0.36, abs=1e-6)
    assert manifest["relative_error"]["attention q"] == pytest.approx(0.5, abs=1e-5)
    extra = read_checkpoint(out).extra
    assert extra["base"]["path"] == str(read_checkpoint(checkpoints.family.transformer).path)
    assert extra["base"]["sha256"] == fingerprint(checkpoints.family.transformer)


def test_base_that_is_given(checkpoints: Checkpoints, tmp_path: Path) -> None:
    run = fine_tuned(checkpoints, tmp_path / "run", {ATTENTION[1]: torch.ones(64, 64)}, named_base=False)
    with pytest.raises(CheckpointError, match="records no base that is still there: give --base"):
        extract(run, tmp_path / "out", "--rank", 1)
    out = extract(run, tmp_path / "out", "--rank", 1, "--base", checkpoints.family.transformer)
    matrices = read_adapter(out).matrices
    name = "transformer.layers.1.attention.dense.matrix_{}.0"
    torch.testing.assert_close(matrices[name.format("B")] @ matrices[name.format("A")], torch.ones(64, 64))
    assert not matrices["transformer.layers.1.attention.query_key_value.matrix_B.0"].any()


def test_base_that_the_run_was_started_from(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A full fine-tune names no base, because it needs none; its YAML says args.load."""
    run = fine_tuned(checkpoints, tmp_path / "run", {ATTENTION[1]: torch.ones(64, 64)}, named_base=False)
    tiny.write_yaml(run / "training_config.yaml", {"args": {"load": str(checkpoints.family.transformer)}})
    out = extract(run, tmp_path / "out", "--rank", 1)
    assert read_checkpoint(out).extra["base"]["sha256"] == fingerprint(checkpoints.family.transformer)


def test_base_that_is_recorded_relative_to_the_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints.family.transformer, tmp_path / "base")
    module = read_checkpoint(
        fine_tuned(checkpoints, tmp_path / "a", {ATTENTION[1]: torch.ones(64, 64)}, named_base=False)
    ).module
    write_checkpoint(tmp_path / "run", 1, module, {"base": {"path": "../../base"}})
    out = extract(tmp_path / "run", tmp_path / "out", "--rank", 1)
    assert Path(read_checkpoint(out).extra["base"]["path"]).is_relative_to((tmp_path / "base").resolve())
    write_checkpoint(tmp_path / "gone", 1, module, {"base": {"path": "/nowhere/base"}})
    with pytest.raises(CheckpointError, match=r"records can't be used: give --base \(.* /nowhere/base: it is not"):
        extract(tmp_path / "gone", tmp_path / "out2", "--rank", 1)


@pytest.mark.parametrize("flags", [(), ("--fast",)])
@pytest.mark.parametrize("name", ["layers.1.attention.dense.weight", "layers.1.mlp.dense_h_to_4h.weight"])
@pytest.mark.parametrize("broken", ["run", "base"])
def test_what_is_not_finite_is_named(
    broken: str, name: str, flags: tuple[str, ...], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    module = dict(read_checkpoint(checkpoints.family.transformer).module)
    changed = {key: value + 1 if key.endswith(ATTENTION) else value for key, value in module.items()}
    full = next(key for key in module if key.endswith(name))
    for folder, state in (("base", module), ("run", changed)):
        if folder == broken:
            state = {**state, full: torch.full_like(state[full], float("nan"))}
        (tmp_path / folder).mkdir()
        torch.save({"module": state}, tmp_path / folder / "weights.pt")
    arguments = ("--rank", 1, "--base", tmp_path / "base" / "weights.pt", *flags)
    with pytest.raises(CheckpointError, match=rf"^\S*{broken}/weights\.pt: NaN or infinity in \S*{name}: training"):
        extract(tmp_path / "run" / "weights.pt", tmp_path / "out", *arguments)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["base", "run"]


def test_base_that_has_changed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    module = dict(read_checkpoint(checkpoints.family.transformer).module)
    write_checkpoint(tmp_path / "base", 1, module, {})
    origin = {"path": str(tmp_path / "base"), "sha256": fingerprint(tmp_path / "base")}
    write_checkpoint(tmp_path / "run", 1, {name: value + 0.1 for name, value in module.items()}, {"base": origin})
    write_checkpoint(tmp_path / "base", 1, {name: 2 * value for name, value in module.items()}, {}, overwrite=True)
    with pytest.raises(CheckpointError, match="that file has changed since"):
        extract(tmp_path / "run", tmp_path / "out", "--rank", 1)


def test_sizes_that_no_fact_names(checkpoints: Checkpoints, tmp_path: Path) -> None:
    module = dict(read_checkpoint(checkpoints.family.transformer).module)
    name = next(name for name in module if name.endswith("layers.1.mlp.dense_4h_to_h.weight"))
    write_checkpoint(tmp_path / "run", 1, {**module, name: torch.ones(64, 32)}, {})
    with pytest.raises(CheckpointError, match=r"not a pair \(e\.g\. transformer\.layers\.1\.mlp\.dense_4h_to_h"):
        extract(tmp_path / "run", tmp_path / "out", "--rank", 2, "--base", checkpoints.family.transformer)


def test_fixed_tables_need_not_be_there(tmp_path: Path) -> None:
    """SAT's 1.0 files of rotary models hold tables that are computed here; a fine-tune doesn't save them."""
    module = dict(read_checkpoint(tiny.write_family(tmp_path / "5b", num_clips=0, family="5b").transformer).module)
    write_checkpoint(
        tmp_path / "base", 1, {**module, f"{PREFIX}mixins.pos_embed.freqs_sin": torch.ones(3, 4, 6, 32)}, {}
    )
    changed = {name: value + 1 if name.endswith(ATTENTION[1]) else value for name, value in module.items()}
    write_checkpoint(tmp_path / "run", 1, changed, {"base": {"path": str(tmp_path / "base")}})
    assert read_adapter(extract(tmp_path / "run", tmp_path / "out", "--rank", 1)).num_layers == 2


def test_mistakes(checkpoints: Checkpoints, tmp_path: Path) -> None:
    changed = fine_tuned(checkpoints, tmp_path / "run", {ATTENTION[0]: torch.ones(192, 64)})
    same = fine_tuned(checkpoints, tmp_path / "same", {})
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"has the attention weights of .*: nothing to extract"):
        extract(same, out, "--rank", 2)
    for rank in (0, 65):
        with pytest.raises(ConfigError, match=rf"--rank {rank}: between 1 and 64, the width"):
            extract(changed, out, "--rank", rank)
    other = tiny.write_family(tmp_path / "other", num_clips=0, family="1.5").transformer
    with pytest.raises(CheckpointError, match=r"is .*sin/cos.*, .* is .*patches of 2 frames.*: not a pair"):
        extract(changed, out, "--rank", 2, "--base", other)
    with pytest.raises(ConfigError, match=r"required: --rank"):
        extract(changed, out)
    assert not out.exists() and not list(tmp_path.glob(".*"))
    extract(changed, out, "--rank", 2)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        extract(changed, out, "--rank", 2)
