"""Headers are remembered while their files stay the same, and whatever happens to the memory is no reason to stop."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from cogvideox.data import file_memory
from cogvideox.data.decode import ClipInfo
from cogvideox.data.header_cache import HeaderCache, cache_file
from cogvideox.data.media import Media

INFO = ClipInfo(96, 48, np.arange(181) * 1001 / 30000)


@pytest.fixture
def clip(tmp_path: Path) -> Media:
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    return Media(str(tmp_path / os.fsdecode(b"caf\xe9.mp4")))


@pytest.fixture
def cache(tmp_path: Path) -> HeaderCache:
    return HeaderCache(tmp_path / "cache" / "headers", "pyav")


def test_a_header_comes_back_as_it_was(cache: HeaderCache, clip: Media) -> None:
    assert cache.get([clip, Media("/nowhere.mp4")]) == {Media("/nowhere.mp4"): None}
    cache.put({clip: INFO})
    back = cache.get([clip])[clip]
    assert (back.width, back.height) == (96, 48)
    np.testing.assert_allclose(back.timestamps, INFO.timestamps, rtol=0, atol=1e-9)
    one = ClipInfo(1, 1, np.zeros(1))
    cache.put({clip: one})
    assert cache.get([clip])[clip].timestamps.tolist() == [0.0]


def test_changed_files_and_other_readers_are_looked_at_again(cache: HeaderCache, clip: Media, tmp_path: Path) -> None:
    cache.get([clip])
    cache.put({clip: INFO})
    assert not HeaderCache(tmp_path / "cache" / "headers", "decord").get([clip])
    os.utime(clip.path, ns=(1, 1))
    assert not cache.get([clip])
    cache.put({clip: INFO})
    Path(clip.path).write_bytes(b"xx")
    os.utime(clip.path, ns=(1, 1))
    assert not cache.get([clip])


def test_a_file_that_changes_while_it_is_looked_at_is_not_known(cache: HeaderCache, clip: Media) -> None:
    cache.get([clip])
    Path(clip.path).write_bytes(b"another one")
    cache.put({clip: INFO})
    assert not cache.get([clip])


def test_other_code_looks_again(cache: HeaderCache, clip: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get([clip])
    cache.put({clip: INFO})
    monkeypatch.setattr(file_memory.av, "__version__", "another")
    assert not cache.get([clip])


@pytest.mark.parametrize("content", [b"no database " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_memory_starts_anew(cache: HeaderCache, clip: Media, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "headers").write_bytes(content)
    assert cache.get([clip]) == {}
    cache.put({clip: INFO})
    assert list(cache.get([clip])) == [clip]


@pytest.mark.parametrize("column", ["facts", "times"])
def test_damaged_rows_are_looked_at_again(cache: HeaderCache, clip: Media, tmp_path: Path, column: str) -> None:
    cache.get([clip])
    cache.put({clip: INFO})
    with sqlite3.connect(tmp_path / "cache" / "headers") as table:
        table.execute(f"UPDATE headers SET {column} = ?", (b"\xff{",))
    table.close()
    assert cache.get([clip]) == {}
    cache.put({clip: INFO})
    assert list(cache.get([clip])) == [clip]


def test_without_a_place_nothing_is_remembered(clip: Media, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "headers", None):
        cache = HeaderCache(place, "pyav")
        assert cache.get([clip]) == {}
        cache.put({clip: INFO})


def test_a_locked_memory_is_not_waited_for(
    cache: HeaderCache, clip: Media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get([clip])
    monkeypatch.setattr(file_memory, "_LOCK_WAIT_S", 0.0)
    other = sqlite3.connect(tmp_path / "cache" / "headers")
    other.execute("BEGIN EXCLUSIVE")
    cache.put({clip: INFO})
    other.rollback()
    other.close()
    assert cache.get([clip]) == {}


def test_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_file() == Path("/somewhere/cogvideox-sat/headers.sqlite3")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_file() == Path("/home/somebody/.cache/cogvideox-sat/headers.sqlite3")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without a home
    assert cache_file() is None
