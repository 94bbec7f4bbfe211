"""What a manifest says of a file: path, size, hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cogvideox.weights.hashes import FAST, SHA256, hash_of
from cogvideox.weights.integrity import check_digest
from cogvideox.weights.manifest import FileRecord
from cogvideox.weights.safetensors_stream import WrittenFile


def describe_input(file: Path, with_sha256: bool) -> FileRecord:
    """Hash a file that was read. Its own name is kept: in a cache of the Hugging Face hub files are links to hashes.

    Raises: CheckpointError when the manifest beside it (cogvideox.weights.manifest) has another hash: it is damaged.
    """
    digest = hash_of(file, FAST)
    check_digest(file, digest)
    return _describe(file, str(file.parent.resolve() / file.name), digest, with_sha256)


def describe_output(folder: Path, name: str, with_sha256: bool) -> FileRecord:
    """Hash a file that was written. name: its path in the folder."""
    return _describe(folder / name, name, hash_of(folder / name, FAST), with_sha256)


def describe_written(folder: Path, name: str, written: WrittenFile, with_sha256: bool) -> FileRecord:
    """As `describe_output`, with the hash that was computed while the file was written."""
    return _describe(folder / name, name, written.xxh3_128, with_sha256)


def describe_folder(folder: Path, written: Mapping[str, WrittenFile], with_sha256: bool) -> list[FileRecord]:
    """Every file below a folder. written: those whose hash is known, by their path in it."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return [
        describe_written(folder, name, written[name], with_sha256)
        if name in written
        else describe_output(folder, name, with_sha256)
        for name in names
    ]


@contextmanager
def described_meanwhile(
    files: Iterable[Path], with_sha256: bool, threads: int = 1
) -> Iterator[Callable[[], list[FileRecord]]]:
    """Hash files that are read, beside what the block does; the value waits for the records.

    When the block fails, files that aren't begun are left.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        jobs = [pool.submit(describe_input, file, with_sha256) for file in files]
        yield lambda: [job.result() for job in jobs]
    finally:
        pool.shutdown(cancel_futures=True)


def _describe(file: Path, path: str, fast: str, with_sha256: bool) -> FileRecord:
    record = {"path": path, "bytes": file.stat().st_size, FAST: fast}
    return record | ({SHA256: hash_of(file, SHA256)} if with_sha256 else {})
