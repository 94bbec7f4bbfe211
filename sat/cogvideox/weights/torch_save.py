"""Saving with torch into a file that is hashed while it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from cogvideox.weights.atomic import failed_write
from cogvideox.weights.hashes import HashedFile
from cogvideox.weights.safetensors_stream import WrittenFile


class TorchSink:
    """A new file that torch's zip writer writes into, and that is hashed on the way.

    Errors of the file must not pass through the writer, which would end the process: they wait until it has returned,
    in `errors`. For the same reason a writer is always finished, into nowhere after an error.
    Raises: CheckpointError when the file can't be made or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: OSError | None = None
        with self.errors():
            self._file = HashedFile(path)

    @property
    def written(self) -> WrittenFile:
        """What the file is by now."""
        return WrittenFile(self._path.name, self._file.num_bytes, self._file.xxh3_128)

    def write(self, data: bytes | memoryview) -> None:
        """What torch's writer calls."""
        try:
            if self._error is None:
                self._file.write(data)
        except OSError as error:
            self._error = error

    def flush(self) -> None:
        """What torch.save calls at the end; nothing is buffered here."""

    def give_up(self) -> None:
        """Drop what is written from here on."""
        self._error = self._error or OSError("given up")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Around whatever writes: raises what the file raised meanwhile."""
        try:
            yield
            if self._error is not None:
                raise self._error
        except OSError as error:
            raise failed_write(self._path, error, self._path.parent) from error

    def __enter__(self) -> TorchSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file:
            pass
        if kind is None:
            with self.errors():
                pass


def save_hashed(path: Path, content: object) -> WrittenFile:
    """`torch.save(content, path)`. Raises: CheckpointError when the file can't be made or the disk is full."""
    with TorchSink(path) as sink:
        torch.save(content, sink)  # type: ignore[arg-type]  # it asks for no more than write and flush
    return sink.written
