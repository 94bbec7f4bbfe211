"""What a manifest says of a weight file: path, size, hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogvideox.weights.hashes import FAST, SHA256, hash_of
from cogvideox.weights.safetensors_stream import WrittenFile

FileRecord = dict[str, Any]  # path, bytes, xxh3_128 and, when it was asked for, sha256


def describe_input(file: Path, with_sha256: bool) -> FileRecord:
    """Hash a file that was read."""
    record = {"path": str(file.resolve()), "bytes": file.stat().st_size, FAST: hash_of(file, FAST)}
    return record | ({SHA256: hash_of(file, SHA256)} if with_sha256 else {})


def describe_written(file: Path, name: str, written: WrittenFile, with_sha256: bool) -> FileRecord:
    """A file whose hash was computed while it was written. name: its path in the manifest."""
    record = {"path": name, "bytes": written.num_bytes, FAST: written.xxh3_128}
    return record | ({SHA256: hash_of(file, SHA256)} if with_sha256 else {})
