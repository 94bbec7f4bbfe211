"""Saving takes tensors from their device one by one; a disk that is full after all is an error with what is needed."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.data.plans import StreamPosition
from cogvideox.errors import CheckpointError
from cogvideox.parallel.groups import start_process_groups
from cogvideox.training.checkpoint import Checkpointer, Progress, load_progress
from cogvideox.training.training_state import read_state
from cogvideox.weights import torch_save
from cogvideox.weights.hashes import HashedFile
from cogvideox.weights.sat_folder import read_checkpoint, write_checkpoint
from processes import run_processes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training.toy import build, section, train, weights

PROGRESS = Progress(3, StreamPosition(12, {"9x32x48": 12}), "clips")

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


def checkpointer(folder: Path, stage: int = 2) -> Checkpointer:
    engine = build(section(stage, **BF16))
    train(engine, range(1, 3))
    return Checkpointer(folder, engine, start_process_groups("cpu"), {})


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_saved_run_goes_on_with_the_same_bits(stage: int, tmp_path: Path) -> None:
    given, groups = section(stage, **BF16), start_process_groups("cpu")
    straight = build(given)
    train(straight, range(1, 4))
    folder = Checkpointer(tmp_path, straight, groups, {}).save(PROGRESS)
    expected = train(straight, range(4, 7))
    resumed = build(given)
    resumed.module.load_state_dict(read_checkpoint(folder).module)
    assert load_progress(folder, resumed, groups) == PROGRESS
    assert train(resumed, range(4, 7)) == expected
    assert all(torch.equal(weights(straight)[name], each) for name, each in weights(resumed).items())


def _two_processes(folder: Path) -> list[bool]:
    groups, same = start_process_groups("cpu"), []
    for stage in (0, 1, 2):
        given = section(stage, accumulation=2, micro=1, **BF16)
        straight = build(given, groups)
        train(straight, range(1, 4), 2, groups.rank)
        (folder / str(stage)).mkdir(exist_ok=True)
        saved = Checkpointer(folder / str(stage), straight, groups, {}).save(PROGRESS)
        files = sorted(file.name for file in (saved / "training_state").iterdir())
        assert files == ["rank_00000.pt", "rank_00001.pt"][: 2 if stage else 1]
        expected = train(straight, range(4, 7), 2, groups.rank)
        resumed = build(given, groups)
        resumed.module.load_state_dict(read_checkpoint(saved).module)
        load_progress(saved, resumed, groups)
        same.append(train(resumed, range(4, 7), 2, groups.rank) == expected)
    return same


@pytest.mark.slow
def test_two_processes_go_on_with_the_same_bits(tmp_path: Path) -> None:
    assert run_processes(_two_processes, 2, tmp_path) == [[True] * 3] * 2


class Copies(TorchDispatchMode):
    """The most bytes that copies of tensors held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and any(name in str(func) for name in ("clone", "_to_copy", "contiguous")):
            size = result.untyped_storage().nbytes()
            self._now += size
            self.most = max(self.most, self._now)
            weakref.finalize(result.untyped_storage(), self._drop, size)
        return result

    def _drop(self, size: int) -> None:
        self._now -= size


@pytest.mark.parametrize("large, at_once", [(2**30, 3), (0, 1)])
def test_weights_that_are_views_are_copied_one_by_one(
    large: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO keeps trained weights as views into one buffer; all copies at once would double it. While one is written the
    next is made, unless they are large."""
    monkeypatch.setattr(torch_save, "_LARGE", large)
    buffer, copies = torch.arange(100_000.0), Copies()
    module = {f"w.{n}": buffer[1000 * n : 1000 * (n + 1)] for n in range(100)}
    with copies:
        write_checkpoint(tmp_path, 1, module, {})
    assert 4000 <= copies.most <= at_once * 4000
    assert all(torch.equal(module[name], each) for name, each in read_checkpoint(tmp_path).module.items())


def test_what_is_saved_is_written_from_cpu_storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor, of weights and optimizer, is asked for its copy on the CPU, and never given to torch.save."""
    asked: list[int] = []
    real = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: (asked.append(self.numel()), real(self))[1])
    monkeypatch.setattr(torch, "save", lambda *_, **__: pytest.fail("torch.save takes tensors as they are"))
    folder = checkpointer(tmp_path).save(Progress(2, StreamPosition(8), ""))
    state = read_state(folder, 0).optimizer
    moments = [each for entry in state["base"]["state"].values() for each in entry.values()]
    held = [*read_checkpoint(folder).module.values(), *moments, *state["masters"]]
    assert sorted(asked) == sorted(each.numel() for each in held)


def fail_in(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when this file is written or synced."""
    error = OSError(errno.ENOSPC, "No space left on device")
    write, sync = HashedFile.write, os.fsync

    def failing_write(file: HashedFile, data: Any) -> None:
        if name in file._file.name:
            raise error
        write(file, data)

    def failing_sync(descriptor: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise error
        sync(descriptor)

    monkeypatch.setattr(HashedFile, "write", failing_write)
    monkeypatch.setattr(os, "fsync", failing_sync)


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "rank_00000.pt", "manifest.json", "latest"])
def test_a_full_disk_says_what_was_needed_and_what_is_free(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = checkpointer(tmp_path)
    saver.save(Progress(2, StreamPosition(8), ""))
    fail_in(monkeypatch, name)
    expected = r"failed: No space left on device; [\d.]+ KiB needed, [\d.]+ \w+ free on the disk of \S+"
    with pytest.raises(CheckpointError, match=expected) as caught:
        saver.save(Progress(3, StreamPosition(12), ""))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path).iteration == 2
