"""The hashes are those that other programs compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cogvideox.weights import hashes
from cogvideox.weights.hashes import FAST, SHA256, HashedFile, hash_of, new_hash


def test_known_values(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "abc").write_bytes(b"abc")
    # The reference implementation's value of no input at all, and FIPS 180's example.
    assert hash_of(tmp_path / "empty", FAST) == "99aa06d3014798d86001c324468d497f"
    assert hash_of(tmp_path / "abc", SHA256) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_many_blocks(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_001  # more than two blocks, and not a whole number of them
    (tmp_path / "x").write_bytes(data)
    for name in (FAST, SHA256):
        whole = new_hash(name)
        whole.update(data)
        assert hash_of(tmp_path / "x", name) == whole.hexdigest()


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes of what is written, and of what goes to the disk on the way."""
    monkeypatch.setattr(hashes, "_FLUSH_EVERY", 100_000)
    parts = [b"", b"a", bytes(range(256)) * 1_001, np.arange(50_000).reshape(5, -1).data, b"end"]
    with HashedFile(tmp_path / "x") as file:
        for part in parts:
            file.write(part)
    assert (tmp_path / "x").read_bytes() == b"".join(bytes(part) for part in parts)
    assert (file.xxh3_128, file.num_bytes) == (hash_of(tmp_path / "x", FAST), (tmp_path / "x").stat().st_size)
