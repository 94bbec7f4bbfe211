"""The compiled libraries: built once, by one of several, and with one line where they can't be."""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
import subprocess
from pathlib import Path

import pytest
from cogvideox.errors import ConfigError
from simulated_cuda import libraries
from simulated_cuda.libraries import guard_library, preload_library


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def _build(_: int) -> str:
    return str(preload_library())


def test_several_processes_build_one_library(cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        (library,) = set(pool.map(_build, range(3)))
    assert hasattr(ctypes.CDLL(library), "fake_cuda_hooks")
    assert sorted(each.suffix for each in Path(library).parent.iterdir()) == [".lock", ".so"]


def test_it_is_built_once_for_each_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compile_nothing(source: Path, library: Path, options: object) -> None:
        calls.append(source.name)
        library.write_bytes(b"")

    monkeypatch.setattr(libraries, "_compile", compile_nothing)
    first = guard_library(Path("torch"), "2.13.0+cpu")
    assert guard_library(Path("torch"), "2.13.0+cpu") == first and calls == ["guard.cpp"]
    assert guard_library(Path("torch"), "2.14.0+cpu") != first and calls == ["guard.cpp"] * 2


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs g\+\+, once, to build a small library: install it"):
        preload_library()


def test_a_compiler_that_fails_is_quoted_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"g\+\+ could not build guard.cpp for this torch: .*error.*") as caught:
        guard_library(tmp_path / "no torch", "2.13.0")
    assert "\n" not in str(caught.value)


def test_a_compiler_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("g++", 300)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(ConfigError, match=r"g\+\+ did not build accelerator.cpp within 300 s"):
        preload_library()


def test_a_cache_that_can_not_be_written(cache: Path) -> None:
    (cache / "cogvideox-sat").write_text("a file")
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        preload_library()
