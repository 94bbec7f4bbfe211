"""The hashes are those that other programs compute."""

from __future__ import annotations

from pathlib import Path

from cogvideox.weights.hashes import FAST, SHA256, hash_of, new_hash


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
