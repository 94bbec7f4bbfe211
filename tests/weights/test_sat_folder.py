"""Checkpoints in SAT's layout: what is written is read back; what is missing or wrong is named."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights import sat_folder
from cogvideox.weights.atomic import begin_folder
from cogvideox.weights.hashes import HashedFile
from cogvideox.weights.sat_folder import fingerprint, read_checkpoint, read_vae, write_checkpoint
from safetensors.torch import save_file
from vae.tiny_vae import tiny_vae

STATE = {"model.diffusion_model.a": torch.randn(3, 4), "model.diffusion_model.b": torch.randn(5).bfloat16()}
Usage = namedtuple("Usage", "total used free")


def save_published(folder: Path, iteration: int = 1, **entries: Any) -> Path:
    """A checkpoint as the released ones are."""
    (folder / str(iteration)).mkdir(parents=True)
    file = folder / str(iteration) / sat_folder.STATES_FILE
    torch.save({"module": STATE, **entries}, file)
    (folder / "latest").write_text(str(iteration))
    return file


def assert_state(module: dict[str, torch.Tensor]) -> None:
    assert module.keys() == STATE.keys()
    assert all(torch.equal(module[name], value) for name, value in STATE.items())


def test_round_trip(tmp_path: Path) -> None:
    lora = {"r": 4, "alpha": 2.0}
    assert write_checkpoint(tmp_path / "run", 12, STATE, {"lora": lora}) == tmp_path / "run" / "12"
    read = read_checkpoint(tmp_path / "run")
    assert_state(read.module)
    assert read.iteration == 12
    assert read.extra == {"format": 1, "iteration": 12, "lora": lora, "base": None}
    assert read.path == tmp_path / "run" / "12" / "mp_rank_00_model_states.pt"
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["12", "latest"]


def test_every_way_to_name_a_checkpoint(tmp_path: Path) -> None:
    file = save_published(tmp_path, 1000)
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "bare.pt")
    for path in (tmp_path, tmp_path / "1000", file):
        read = read_checkpoint(path)
        assert_state(read.module)
        assert (read.iteration, read.extra) == (1000, {})
    for name in ("w.safetensors", "bare.pt"):
        assert_state(read_checkpoint(tmp_path / name).module)
    assert_state(read_checkpoint(str(tmp_path), iteration=1000).module)


def test_ema_stands_beside_and_latest_does_not_name_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3, STATE, {})
    write_checkpoint(tmp_path, 5, STATE, {}, variant="ema")
    assert (tmp_path / "latest").read_text() == "3"
    assert read_checkpoint(tmp_path, "5-ema").iteration == 5


def test_views_are_saved_alone(tmp_path: Path) -> None:
    """ZeRO keeps parameters as views into one large buffer."""
    buffer = torch.randn(1_000_000)
    write_checkpoint(tmp_path, 1, {"a": buffer[10:20], "b": buffer[:9].view(3, 3).t()}, {})
    read = read_checkpoint(tmp_path)
    assert read.path.stat().st_size < 10_000
    assert torch.equal(read.module["b"], buffer[:9].view(3, 3).t())


def test_existing_iteration_is_not_replaced_unless_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, STATE, {})
    with pytest.raises(CheckpointError, match=r"1 exists and is not empty"):
        write_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {})
    assert_state(read_checkpoint(tmp_path).module)
    write_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, overwrite=True)
    assert list(read_checkpoint(tmp_path).module) == ["w"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "latest"]


@pytest.mark.parametrize("place", [".", "mounted"])
def test_folders_that_cannot_be_renamed(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before hours of work: both were errors of the last rename."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
    with pytest.raises(CheckpointError, match="can't be replaced as a whole: name a new folder in it"):
        begin_folder(Path(place), 0)
    assert not list(tmp_path.parent.glob(".*.partial"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_weights_are_never_saved(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    broken = torch.ones(4, dtype=dtype)
    broken[2] = bad
    write_checkpoint(tmp_path, 1, STATE, {})
    with pytest.raises(CheckpointError, match=r"NaN or infinity in x\.y\. Training diverged"):
        write_checkpoint(tmp_path, 2, {**STATE, "x.y": broken}, {})
    assert (tmp_path / "latest").read_text() == "1"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "latest"]


def test_crash_while_writing_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, 1, STATE, {})

    def fail(file: HashedFile, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HashedFile, "write", fail)
    with pytest.raises(CheckpointError, match=r"states\.pt failed: No space left on device.*nothing was kept"):
        write_checkpoint(tmp_path, 2, STATE, {})
    assert_state(read_checkpoint(tmp_path).module)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "latest"]


def test_leftovers_of_a_killed_save_do_not_matter(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, STATE, {})
    (tmp_path / ".2.partial").mkdir()
    (tmp_path / ".2.partial" / "half").write_bytes(b"x")
    assert_state(read_checkpoint(tmp_path).module)
    write_checkpoint(tmp_path, 2, STATE, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "2", "latest"]


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40, 2**20))
    with pytest.raises(CheckpointError, match=r"not enough space for .*run: 64 MiB needed, 1 MiB free"):
        write_checkpoint(tmp_path / "run", 1, STATE, {})
    assert not (tmp_path / "run").exists()


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(CheckpointError, match="no permission to write in"):
        write_checkpoint(tmp_path / "run", 1, STATE, {})


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="run is a file, a folder is needed"):
        write_checkpoint(tmp_path / "run" / "deep", 1, STATE, {})


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*none"):
        read_checkpoint(tmp_path / "none")


def test_no_latest(tmp_path: Path) -> None:
    save_published(tmp_path / "model" / "transformer", 1000)
    (tmp_path / "model" / "transformer" / "latest").unlink()
    with pytest.raises(CheckpointError, match=r"no file 'latest'.*there: 1000"):
        read_checkpoint(tmp_path / "model" / "transformer")


def test_folder_above_is_recognised(tmp_path: Path) -> None:
    save_published(tmp_path / "transformer")
    with pytest.raises(CheckpointError, match="there: transformer/"):
        read_checkpoint(tmp_path)


def test_latest_names_an_absent_iteration(tmp_path: Path) -> None:
    save_published(tmp_path, 1)
    (tmp_path / "latest").write_text("500\n")
    with pytest.raises(CheckpointError, match=r"no iteration '500' \(named by .*latest\); there: 1$"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"no iteration '7' \(asked for\)"):
        read_checkpoint(tmp_path, 7)


@pytest.mark.parametrize("text", [b"", b"a/b", b"\xff\xfe1"])
def test_latest_is_nonsense(tmp_path: Path, text: bytes) -> None:
    save_published(tmp_path, 1)
    (tmp_path / "latest").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"latest (holds|can't be read)"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "..", "1\n2", "a/../b", "\x1b[2J"])
def test_latest_names_no_folder(tmp_path: Path, text: str) -> None:
    save_published(tmp_path, 1)
    (tmp_path / "latest").write_text(text)
    with pytest.raises(CheckpointError, match=r"latest (holds|can't be read)") as error:
        read_checkpoint(tmp_path)
    assert len(str(error.value)) < 500 and str(error.value).isprintable()


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf1\r\n", b"1\r\n", b" 1 "])
def test_latest_as_other_systems_write_it(tmp_path: Path, text: bytes) -> None:
    save_published(tmp_path, 1)
    (tmp_path / "latest").write_bytes(text)
    assert read_checkpoint(tmp_path).iteration == 1


def test_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match=r"pipe\.pt is neither a file nor a folder"):
        read_checkpoint(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match=r"no checkpoint at '/.*x\.\.\.: valid are"):
        read_checkpoint("/" + "x" * 5000)


def test_empty_iteration(tmp_path: Path) -> None:
    save_published(tmp_path, 1).unlink()
    (tmp_path / "1" / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"has no mp_rank_00_model_states.pt \(it holds: notes.txt\)"):
        read_checkpoint(tmp_path)


def test_model_parallel(tmp_path: Path) -> None:
    file = save_published(tmp_path, 1)
    shutil.copy(file, file.with_name("mp_rank_01_model_states.pt"))
    with pytest.raises(CheckpointError, match="split over 2 model-parallel ranks"):
        read_checkpoint(tmp_path)


def test_what_lies_beside_the_weights_is_no_second_part(tmp_path: Path) -> None:
    file = save_published(tmp_path, 1)
    for suffix in (".sha256", ".tmp"):
        file.with_name(file.name + suffix).write_text("x")
    assert read_checkpoint(tmp_path).path == file


def test_an_iteration_of_a_file(tmp_path: Path) -> None:
    file = save_published(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"states\.pt is one file: iteration 77 can be asked of a folder with 'latest'"
    ):
        read_checkpoint(file, 77)


def test_files_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="holds no tensors; its entries: epoch"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds a list, expected a dict"):
        read_checkpoint(tmp_path / "b.pt")


def test_metadata_from_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has format 2; this version reads format 1"):
        read_checkpoint(save_published(tmp_path / "a", cogvideox={"format": 2}))
    with pytest.raises(CheckpointError, match="'cogvideox' is a list"):
        read_checkpoint(save_published(tmp_path / "b", cogvideox=[1]))


def test_vae(tmp_path: Path) -> None:
    vae = tiny_vae().state_dict()
    (tmp_path / "vae").mkdir()
    torch.save({"state_dict": {**vae, "loss.discriminator.w": torch.zeros(9)}}, tmp_path / "vae" / "3d-vae.pt")
    whole = {f"first_stage_model.{name}": value for name, value in vae.items()}
    torch.save({"module": {**STATE, **whole, "first_stage_model.loss.w": torch.zeros(1)}}, tmp_path / "engine.pt")
    for path in (tmp_path / "vae", tmp_path / "vae" / "3d-vae.pt", tmp_path / "engine.pt"):
        read = read_vae(path)
        assert read.keys() == vae.keys()
        assert all(torch.equal(read[name], value) for name, value in vae.items())
    torch.save({"module": STATE}, tmp_path / "no.pt")
    with pytest.raises(CheckpointError, match=r"holds no VAE .*model\.diffusion_model\.a"):
        read_vae(tmp_path / "no.pt")
    del vae["encoder.mid.block_1.conv2.conv.bias"]
    torch.save({"state_dict": vae}, tmp_path / "hole.pt")
    with pytest.raises(
        CheckpointError, match=r"hole\.pt is not a whole VAE.*: encoder\.mid\.block_1\.conv2\.conv\.bias$"
    ):
        read_vae(tmp_path / "hole.pt")
    assert read_vae(tmp_path / "hole.pt", check=False).keys() == vae.keys()


def test_fingerprint(tmp_path: Path) -> None:
    file = save_published(tmp_path, 1)
    assert fingerprint(tmp_path) == fingerprint(file)
    before = fingerprint(file)
    file.write_bytes(file.read_bytes() + b"x")
    assert fingerprint(file) != before


def test_zero_shards(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("7")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"7 holds the ZeRO shards of a training run: run tools/consolidate_zero"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("key", ["lora", "base"])
def test_entries_of_another_type(tmp_path: Path, key: str) -> None:
    torch.save({"module": {"a": torch.ones(1)}, "cogvideox": {key: "somewhere"}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"a\.pt: '{key}' of its entry 'cogvideox' is a str, a dict is expected"):
        read_checkpoint(tmp_path / "a.pt")
