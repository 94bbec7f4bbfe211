"""Weight files are read without running anything from them; whatever is wrong with one is said in one line."""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.torch_file import load_file, sha256_of
from safetensors.torch import save_file


class Attack:
    """Pickled, this asks for os.system with a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["whole", "beside"])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, zipped: bool, place: str) -> None:
    trace, attack = tmp_path / "trace", Attack(f"touch {tmp_path / 'trace'}")
    content = attack if place == "whole" else {"module": {"w": torch.zeros(2)}, "args": attack}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"bad\.pt was refused: it asks for \w+\.system") as caught:
        load_file(tmp_path / "bad.pt")
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", [eval, exec, getattr, __import__, os.remove])
def test_functions_of_python_are_refused(tmp_path: Path, asked: Any) -> None:
    torch.save({"module": {"w": torch.zeros(2)}, "f": asked}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=f"asks for [\\w.]*{asked.__name__}"):
        load_file(tmp_path / "bad.pt")


def test_what_old_training_checkpoints_hold_is_read(tmp_path: Path) -> None:
    content = {
        "module": {"w": torch.randn(3)},
        "iteration": np.int64(7),
        "args": argparse.Namespace(lr=np.float32(0.5), path="x", flag=np.bool_(True)),
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
    }
    torch.save(content, tmp_path / "old.pt")
    read = load_file(tmp_path / "old.pt")
    assert torch.equal(read["module"]["w"], content["module"]["w"])
    assert read["args"].lr == 0.5
    assert read["iteration"] == 7


def test_numpy_of_either_major_version(tmp_path: Path) -> None:
    """numpy 1 and 2 write different module names for the same two functions."""
    torch.save({"x": np.float64(1.5), "y": np.arange(3)}, tmp_path / "new.pt", _use_new_zipfile_serialization=False)
    text = (tmp_path / "new.pt").read_bytes()
    other = text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert other != text or b"numpy.core.multiarray" in text
    (tmp_path / "old.pt").write_bytes(other)
    for name in ("new.pt", "old.pt"):
        assert load_file(tmp_path / name)["x"] == 1.5
        assert not isinstance(load_file(tmp_path / name)["y"], np.ndarray), "arrays are dropped"


@pytest.mark.parametrize("value", [np.str_("x"), np.datetime64(1, "s"), np.void(b"ab"), np.complex64(1)])
def test_numpy_values_that_are_no_plain_numbers(tmp_path: Path, value: Any) -> None:
    torch.save({"w": torch.zeros(1), "x": value}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"is none of the plain numbers|was refused"):
        load_file(tmp_path / "w.pt")


def test_tensors_are_mapped_not_loaded(tmp_path: Path) -> None:
    state = {"w": torch.zeros(32, 2**20)}  # 128 MiB
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    del state
    for name in ("a.pt", "a.safetensors"):
        before = anonymous_bytes()
        read = load_file(tmp_path / name)
        value = read if isinstance(read, torch.Tensor) else read["w"]
        assert value.sum() == 0
        assert anonymous_bytes() - before < 40 * 2**20, name


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_files_from_before_the_zip_format(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(4)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_file(tmp_path / "old.pt")["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><html>404</html>", "web page"),
        (b"<html><body>login</body></html>", "web page"),
        (b"hello", "not a torch checkpoint"),
        (b"\x80\x02garbage", "truncated or damaged|refused"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_file(tmp_path / "w.pt")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    state = {f"w{index}": torch.randn(50, 50) for index in range(5)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        CheckpointError, match=r"truncated or damaged \([\d,]+ bytes.*copy or download it again"
    ) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file at"):
        load_file(tmp_path / "none.pt")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "w.pt")

    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(CheckpointError, match=r"cannot read .*Permission denied"):
        load_file(tmp_path / "w.pt")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, zipped: bool) -> None:
    """Whatever a few wrong bytes in the pickle do, the answer is a value or one line."""
    content = {"module": {"w": torch.randn(3)}, "args": argparse.Namespace(a=np.float64(1)), "r": np.arange(3)}
    path = tmp_path / "w.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    good, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(generator.choice((1, 1, 3))):
            bad[generator.randrange(min(len(bad), 900))] = generator.randrange(256)
        path.write_bytes(bad)
        try:
            load_file(path)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
