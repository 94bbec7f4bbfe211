"""Shards that DeepSpeed wrote give back, bit by bit, the weights that it held; broken sets of shards are named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.sat_folder import read_checkpoint
from cogvideox.weights.zero_shards import read_zero
from consolidate_zero import main
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from processes import run_processes
from weights.zero_saves import CASES, FROZEN, STEPS, Module, save_all

RANKS = 2
PREFIX = {"stage1": "bf16_", "stage1_fp32_grads": "bf16_", "stage2": "", "stage3": "bf16_"}


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One group of two processes saves all cases."""
    folder = tmp_path_factory.mktemp("zero")
    run_processes(save_all, RANKS, folder)
    return folder


@pytest.fixture
def copy(saves: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A tag's folder that a test may damage."""

    def make(case: str) -> Path:
        return Path(shutil.copytree(saves / case / f"global_step{STEPS}", tmp_path / case))

    return make


def optimizer_file(folder: Path, rank: int) -> Path:
    return next(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))


@pytest.mark.parametrize("case", CASES)
def test_bit_equal_to_the_live_weights(case: str, saves: Path) -> None:
    live = torch.load(saves / f"live_{case}.pt", weights_only=True)
    found = read_zero(saves / case)
    assert (found.stage, found.num_ranks, found.iteration) == (CASES[case][0], RANKS, STEPS)
    assert set(found) == set(live) == set(Module().state_dict())
    for name, value in live.items():
        assert found[name].dtype == value.dtype == found.shapes[name][1]
        assert found[name].shape == value.shape == found.shapes[name][0]
        assert torch.equal(found[name], value), name
    trained = [name for name in live if not name.startswith(FROZEN) and not name.endswith("table")]
    assert all(found[name].dtype == torch.float32 for name in trained)
    if CASES[case][1]:
        assert any(not torch.equal(found[name].bfloat16().float(), found[name]) for name in trained), "not the masters"


@pytest.mark.parametrize("case", [case for case in CASES if case != "stage1_fp32_grads"])  # it refuses that one
def test_equal_to_deepspeeds_own_converter(case: str, saves: Path) -> None:
    found = read_zero(saves / case)
    for name, value in get_fp32_state_dict_from_zero_checkpoint(str(saves / case)).items():
        assert torch.equal(found[name].float(), value.float()), name


@pytest.mark.parametrize("case", CASES)
def test_one_command(case: str, saves: Path, tmp_path: Path, capsys: Any) -> None:
    main([str(saves / case), "--output_path", str(tmp_path / "whole")])
    main([str(saves / case / f"global_step{STEPS}"), "--output_path", str(tmp_path / "bf16"), "--bf16"])
    found, shards = read_checkpoint(tmp_path / "whole"), read_zero(saves / case)
    assert found.path.parent.name == str(STEPS) and found.iteration == STEPS
    assert found.module.keys() == shards.keys()
    assert all(torch.equal(value, shards[name]) for name, value in found.module.items())
    half = read_checkpoint(tmp_path / "bf16").module
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in found.module.items())
    assert f"ZeRO stage {CASES[case][0]}, {RANKS} ranks, 7 tensors" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        main([str(saves / case), "--output_path", str(tmp_path / "whole")])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", range(RANKS))
def test_missing_rank(case: str, rank: int, copy: Callable[[str], Path]) -> None:
    folder = copy(case)
    optimizer_file(folder, rank).unlink()
    with pytest.raises(CheckpointError, match=rf"saved by 2 ranks, and the optim_states of rank {rank} are not there"):
        read_zero(folder)


def test_missing_model_states(copy: Callable[[str], Path]) -> None:
    folder = copy("stage3")
    (folder / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(
        CheckpointError, match=r"the model_states of rank 1 are not there: copy the shards of all nodes"
    ):
        read_zero(folder)
    other = copy("stage2")
    (other / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no weight file at .*mp_rank_00_model_states\.pt"):
        read_zero(other)


@pytest.mark.parametrize("case", CASES)
def test_ranks_of_another_save(case: str, copy: Callable[[str], Path]) -> None:
    folder = copy(case)
    name = f"{PREFIX[case]}zero_pp_rank_2_mp_rank_00_optim_states.pt"
    shutil.copy(optimizer_file(folder, 0), folder / name)
    with pytest.raises(
        CheckpointError, match=r"saved by 2 ranks, but there are optim_states of rank 2: shards of anoth"
    ):
        read_zero(folder)


def change(file: Path, **entries: Any) -> None:
    """Save a shard again with other entries, as plain values."""
    content = torch.load(file, weights_only=False)
    state = content.get("optimizer_state_dict", content)
    state.update(entries)
    for name in ("loss_scaler", "param_slice_mappings"):
        state.pop(name, None)
    state["zero_stage"] = int(state.get("zero_stage", 0))
    torch.save(content, file)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"partition_count": [4, 4]}, r"says number of ranks 2, .*rank_1.* says 4 .*: shards of different saves"),
        ({"zero_stage": 1}, r"says ZeRO stage 2, .* says 1"),
        ({"single_partition_of_fp32_groups": [torch.ones(3)]}, r"have other parameter groups than its module"),
        (
            {"single_partition_of_fp32_groups": [torch.ones(30), torch.ones(8)]},
            r"the shards hold 64 values where the parameters have 68: shards of another save",
        ),
    ],
)
def test_mixed_saves(entries: dict[str, Any], message: str, copy: Callable[[str], Path]) -> None:
    folder = copy("stage2")
    change(optimizer_file(folder, 1), **entries)
    with pytest.raises(CheckpointError, match=message):
        read_zero(folder)


def test_stage_3_of_another_save(copy: Callable[[str], Path]) -> None:
    folder = copy("stage3")
    change(optimizer_file(folder, 1), fp32_flat_groups=[torch.ones(44)])
    with pytest.raises(CheckpointError, match=r"the shards hold 44 values where the parameters have 45"):
        read_zero(folder)


def test_truncated_shard(copy: Callable[[str], Path]) -> None:
    folder = copy("stage1")
    file = optimizer_file(folder, 1)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{file.name} is truncated or damaged"):
        read_zero(folder)


def test_pickle_that_wants_to_run_code(copy: Callable[[str], Path]) -> None:
    folder = copy("stage2")
    file = optimizer_file(folder, 0)
    content = torch.load(file, weights_only=False)
    content["optimizer_state_dict"]["hook"] = re.sub
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"was refused: it asks for re\.sub"):
        read_zero(folder)


def test_two_precisions_in_one_folder(copy: Callable[[str], Path]) -> None:
    folder = copy("stage1")
    shutil.copy(optimizer_file(folder, 0), folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match=r"holds bf16_zero.* and zero_pp_rank_0.*: shards of different saves"):
        read_zero(folder)


def test_what_is_no_zero_checkpoint(copy: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder with ZeRO shards at"):
        read_zero(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no ZeRO shards .*; it holds: nothing"):
        read_zero(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"has no folder '7'; there: empty"):
        read_zero(tmp_path, "7")
    folder = copy("stage2")
    change(optimizer_file(folder, 0), zero_stage=0)
    change(optimizer_file(folder, 1), zero_stage=0)
    with pytest.raises(CheckpointError, match=r"is of ZeRO stage 0; valid are 1, 2 and 3"):
        read_zero(folder)
    shutil.copy(optimizer_file(folder, 0), folder / "zero_pp_rank_0_mp_rank_01_optim_states.pt")
    with pytest.raises(CheckpointError, match=r"split over model-parallel ranks \(zero_pp_rank_0_mp_rank_01"):
        read_zero(folder)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe1"])
def test_latest_is_nonsense(saves: Path, tmp_path: Path, text: bytes) -> None:
    folder = Path(shutil.copytree(saves / "stage2", tmp_path / "run"))
    (folder / "latest").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"latest (holds|can't be read)"):
        read_zero(folder)


def test_files_without_their_entries(copy: Callable[[str], Path]) -> None:
    folder = copy("stage2")
    model = folder / "mp_rank_00_model_states.pt"
    torch.save({"module": {"a": torch.ones(1)}}, model)
    with pytest.raises(CheckpointError, match=r"names no parameters \(param_shapes\)"):
        read_zero(folder)
    torch.save({"weights": {}}, optimizer_file(folder, 0))
    with pytest.raises(CheckpointError, match=r"holds no 'optimizer_state_dict': it was not saved by DeepSpeed"):
        read_zero(folder)


def test_the_runs_settings_come_along(saves: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(saves / "stage2", tmp_path / "run"))
    main([str(run), "--output_path", str(tmp_path / "without")])
    assert not (tmp_path / "without" / "training_config.yaml").exists()
    (run / "training_config.yaml").write_text("model: {}\n")
    main([str(run), "--output_path", str(tmp_path / "with")])
    assert (tmp_path / "with" / "training_config.yaml").read_text() == "model: {}\n"
