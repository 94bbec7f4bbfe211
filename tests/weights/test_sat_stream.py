"""The streamed file is torch.save's, byte for byte, and takes the memory of one tensor."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cogvideox
import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.hashes import FAST, hash_of
from cogvideox.weights.safetensors_stream import Entry
from cogvideox.weights.sat_folder import STATES_FILE, begin_iteration, commit_iteration, read_checkpoint, states_content
from cogvideox.weights.sat_stream import stream_states, write_sat_folder
from torch import Tensor

EXTRA = {"base": {"path": "/somewhere", "sha256": "0" * 64}, "lora": None}


def state() -> dict[str, Tensor]:
    return {
        "a.weight": torch.randn(7, 5).bfloat16(),
        "a.bias": torch.randn(3),
        "half": torch.randn(2, 3, 4).half(),
        "scalar": torch.tensor(3.5),
        "steps": torch.arange(4),
        "empty": torch.zeros(0, 3),
    }


def entries(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> list[Entry]:
    return [Entry(name, tuple(value.shape), dtype or value.dtype) for name, value in tensors.items()]


def test_same_bytes_as_torch_save(tmp_path: Path) -> None:
    tensors = state()
    (tmp_path / "whole" / "partial").mkdir(parents=True)
    (tmp_path / "streamed" / "partial").mkdir(parents=True)
    with (tmp_path / "whole" / "partial" / STATES_FILE).open("wb") as file:
        torch.save(states_content(5, tensors, EXTRA), file)
    written = stream_states(tmp_path / "streamed" / "partial", 5, entries(tensors), iter(tensors.items()), EXTRA)
    whole, streamed = (tmp_path / kind / "partial" / STATES_FILE for kind in ("whole", "streamed"))
    with zipfile.ZipFile(whole) as first, zipfile.ZipFile(streamed) as second:
        assert second.testzip() is None
        names = [name for name in first.namelist() if not name.endswith("serialization_id")]
        assert names == [name for name in second.namelist() if not name.endswith("serialization_id")]
        for name in names:
            assert first.getinfo(name).header_offset == second.getinfo(name).header_offset
            assert first.read(name) == second.read(name), name
    assert written.xxh3_128 == hash_of(streamed, FAST)
    assert written.num_bytes == streamed.stat().st_size == whole.stat().st_size


def test_reads_back_and_casts(tmp_path: Path) -> None:
    tensors = {name: value for name, value in state().items() if value.is_floating_point()}
    partial, final = begin_iteration(tmp_path / "ckpt", 3, 1000)
    views = ((name, torch.stack([value, value])[1]) for name, value in tensors.items())
    stream_states(partial, 3, entries(tensors, torch.bfloat16), views, EXTRA)
    commit_iteration(partial, final, 3)
    found = read_checkpoint(tmp_path / "ckpt")
    assert found.extra == {**EXTRA, "format": 1, "iteration": 3}
    assert found.module.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found.module[name], value.bfloat16())


def test_a_folder_with_latest(tmp_path: Path) -> None:
    tensors = state()
    with new_folder(tmp_path / "ckpt", 1000) as partial:
        write_sat_folder(partial, 7, entries(tensors), iter(tensors.items()), EXTRA)
    assert (tmp_path / "ckpt" / "latest").read_text() == "7"
    found = read_checkpoint(tmp_path / "ckpt")
    assert (found.path, found.iteration) == (tmp_path / "ckpt" / "7" / STATES_FILE, 7)
    assert found.module.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "NaN or infinity in broken"), (1e6, r"broken holds 1e\+06, beyond float16's 65504")],
)
def test_not_finite_in_the_file(tmp_path: Path, value: float, message: str) -> None:
    tensors = {"fine": torch.ones(2), "broken": torch.tensor([1.0, value])}
    with pytest.raises(CheckpointError, match=message):
        stream_states(tmp_path, 1, entries(tensors, torch.float16), iter(tensors.items()), {})


def test_no_place_to_write(tmp_path: Path) -> None:
    tensors = state()
    with pytest.raises(CheckpointError, match=r"writing .* failed"):
        stream_states(tmp_path / "absent", 1, entries(tensors), iter(tensors.items()), {})


@pytest.mark.parametrize("limit", [20, 300, 1000])
def test_full_disk(tmp_path: Path, limit: int) -> None:
    """The limit in kB on a file's size, in a process of its own, which torch's writer used to end."""
    run = run_apart("full", tmp_path / "new", limit)
    assert run.returncode == 0, run.stderr
    assert re.match(r"writing .*model_states\.pt failed: .*; nothing was kept$", run.stdout), run.stdout
    assert list(tmp_path.iterdir()) == []


def test_errors_of_what_makes_the_tensors_are_not_those_of_writing(tmp_path: Path) -> None:
    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(2)
        raise RuntimeError("linalg.svd: the algorithm failed to converge")

    names = [Entry("a", (2,), torch.float32), Entry("b", (2,), torch.float32)]
    with pytest.raises(RuntimeError, match=r"^linalg\.svd"), new_folder(tmp_path / "new", 100) as partial:
        write_sat_folder(partial, 1, names, tensors(), {})
    assert list(tmp_path.iterdir()) == []


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    """192 MiB in tensors of 4 MiB; freed memory goes back at once, so that what is held shows."""
    run = run_apart("memory", tmp_path)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 12 * 1024, run.stdout


def run_apart(*arguments: object) -> subprocess.CompletedProcess[str]:
    """This file as a script."""
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "1000000",
        "PYTHONPATH": str(Path(cogvideox.__file__).parents[1]),
    }
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _memory(folder: Path) -> None:
    shape, count = (1024, 1024), 48
    before, peak = _anonymous_kib(), 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal peak
        for index in range(count):
            yield str(index), torch.full(shape, float(index))
            peak = max(peak, _anonymous_kib())

    stream_states(folder, 1, [Entry(str(index), shape, torch.float32) for index in range(count)], tensors(), {})
    print(peak - before)


def _full(folder: Path, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 1000, limit * 1000))
    names = [Entry(str(index), (100, 100), torch.float32) for index in range(25)]  # 40 kB each
    try:
        with new_folder(folder, 1000) as partial:
            write_sat_folder(partial, 1, names, ((entry.name, torch.ones(entry.shape)) for entry in names), {})
    except CheckpointError as error:
        print(error)


if __name__ == "__main__":
    _memory(Path(sys.argv[2])) if sys.argv[1] == "memory" else _full(Path(sys.argv[2]), int(sys.argv[3]))
