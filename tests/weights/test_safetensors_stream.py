"""Files that are streamed tensor by tensor are those that the safetensors library writes and reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.hashes import FAST, hash_of
from cogvideox.weights.safetensors_stream import Entry, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float64)


def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).mul(3).to(dtype)


def write(folder: Path, state: dict[str, Tensor], dtype: torch.dtype | None = None, **options: Any) -> Any:
    entries = [Entry(name, tuple(value.shape), dtype or value.dtype) for name, value in state.items()]
    return write_model(folder, "m", entries, iter(state.items()), **options)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
)
def test_the_library_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    state = {f"t{i}": tensor(shape, dtypes[i]) for i, shape in enumerate(shapes)}
    write(folder, state)
    read = load_file(folder / "m.safetensors")
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        assert torch.equal(read[name], value)


def test_views_and_header(tmp_path: Path) -> None:
    state = {"a": torch.randn(4, 6).t(), "b": torch.randn(10)[2:5]}
    written = write(tmp_path, state, header={"format": "pt", "note": "ä"})
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ä"}
        assert torch.equal(file.get_tensor("a"), state["a"])
        assert torch.equal(file.get_tensor("b"), state["b"])
    (only,) = written
    assert only.xxh3_128 == hash_of(tmp_path / "m.safetensors", FAST)
    assert only.num_bytes == (tmp_path / "m.safetensors").stat().st_size


def test_shards_and_index(tmp_path: Path) -> None:
    state = {f"t{i}": torch.randn(100) for i in range(5)}  # 400 bytes each
    written = write(tmp_path, state, max_shard_bytes=900)
    names = [f"m-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in written] == names
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    assert set(index["weight_map"].values()) == set(names)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], state[name])


def test_a_tensor_larger_than_a_shard_stands_alone(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.zeros(4), "big": torch.zeros(100), "b": torch.zeros(4)}, max_shard_bytes=64)
    assert [list(load_file(file)) for file in sorted(tmp_path.glob("*.safetensors"))] == [["a"], ["big"], ["b"]]


def test_cast(tmp_path: Path) -> None:
    state = {"a": torch.randn(5), "b": torch.randn(5).bfloat16()}
    write(tmp_path, state, torch.float16)
    read = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(read[name], value.half()) for name, value in state.items())


def test_values_beyond_the_type(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w holds 7e\+04, beyond float16's 65504: choose bfloat16"):
        write(tmp_path, {"w": torch.tensor([1.0, -7e4])}, torch.float16)


def test_not_finite(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(CheckpointError, match="NaN or infinity in w: training diverged"):
            write(tmp_path, {"w": torch.tensor([1.0, float("nan")])}, dtype)


def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"m\.safetensors failed: No space left on device"):
        write(tmp_path, {"w": torch.zeros(3)})


def test_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    """Values are asked for one by one, and at most a few wait to be hashed."""
    alive: list[int] = []
    size, count = 2**20, 50

    def values() -> Any:
        for i in range(count):
            alive.append(anonymous_bytes())
            yield f"t{i}", torch.full((size,), float(i))  # 4 MiB

    entries = [Entry(f"t{i}", (size,), torch.float32) for i in range(count)]
    write_model(tmp_path, "m", entries, values())
    # Five of them are in use at a time (20 MiB); the allocator keeps freed blocks for a while, up to about 14 of them.
    # Keeping all would take 200 MiB.
    assert max(alive) - alive[0] < 100 * 2**20


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
