"""Writing what torch.save writes, hashed on the way and tensor by tensor.

torch.save needs every tensor before it writes the first byte. Here the pickle of names, shapes and dtypes is written
first, and each tensor's bytes follow. The file is byte for byte what torch.save puts into an open file: a zip archive
of `data.pkl` and, aligned for mapping, `data/0`, `data/1`, ... Tensors of a GPU are copied to the CPU one after the
other, and are CPU tensors in the file.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from cogvideox.weights.atomic import failed_write
from cogvideox.weights.hashes import HashedFile
from cogvideox.weights.safetensors_stream import Entry, WrittenFile, cast_to

_PICKLE_PROTOCOL = 2  # torch.save's; old readers know no other
_LARGE = 2**30  # bytes; while a smaller tensor is written, the next one is made


@dataclass(frozen=True)
class Whole:
    """What a file is a part of: the temporary folder, and how many bytes all of its files need, where that is known.
    A full disk is reported with both."""

    folder: Path
    needed_bytes: int | None = None


class TorchSink:
    """A new file that torch's zip writer writes into, and that is hashed on the way.

    Errors of the file must not pass through the writer, which would end the process: they wait until it has returned,
    in `errors`. For the same reason a writer is always finished, into nowhere after an error.
    whole: what the file is a part of. Raises: CheckpointError when the file can't be made or written.
    """

    def __init__(self, path: Path, whole: Whole | None = None) -> None:
        self._path, self._whole = path, whole or Whole(path.parent)
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
            raise failed_write(self._path, error, self._whole.folder, self._whole.needed_bytes) from error

    def __enter__(self) -> TorchSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file:
            pass
        if kind is None:
            with self.errors():
                pass


def save_hashed(path: Path, content: object, whole: Whole | None = None) -> WrittenFile:
    """`torch.save(content, path)` of dicts, lists and tuples; the tensors may be on any device.

    Raises: CheckpointError when the file can't be made or the disk is full.
    """
    tensors: list[tuple[Entry, Tensor]] = []
    skeleton = _with_entries(content, tensors)
    return _stream(path, skeleton, [entry for entry, _ in tensors], (value for _, value in tensors), whole)


class _AnyEntry(Entry):
    """Of whatever type torch has a name for in its files."""

    def __post_init__(self) -> None:
        pass


def _with_entries(content: object, found: list[tuple[Entry, Tensor]]) -> object:
    """The same with an entry in place of each tensor; `found` gets both."""
    if isinstance(content, Tensor):
        found.append((_AnyEntry(f"tensor {len(found)}", tuple(content.shape), content.dtype), content.detach()))
        return found[-1][0]
    if isinstance(content, Mapping):
        return {key: _with_entries(value, found) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_with_entries(value, found) for value in content)
    return content


def stream_torch_file(
    path: Path,
    content: object,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
) -> WrittenFile:
    """Write `content`, in which an `Entry` stands for each tensor.

    Args:
        entries: every tensor, in the order in which `tensors` gives them.
        tensors: names and values; each is cast to its entry's dtype and dropped after it is written.

    Raises: CheckpointError for a value that is not finite (or not in the entry's dtype), or a full disk.
    """

    def values() -> Iterator[Tensor]:
        for entry, (name, value) in zip(entries, tensors, strict=True):
            assert name == entry.name, f"{name} is not {entry}"
            yield cast_to(name, value, entry.dtype)

    return _stream(path, content, entries, values(), None)


def _stream(
    path: Path, content: object, entries: Sequence[Entry], values: Iterator[Tensor], whole: Whole | None
) -> WrittenFile:
    pickled = io.BytesIO()
    _SkeletonPickler(pickled, {entry.name: str(index) for index, entry in enumerate(entries)}).dump(content)
    writing: Future[None] | None = None
    with _Archive(path, whole) as archive, ThreadPoolExecutor(1) as writer:
        archive.write_record("data.pkl", pickled.getvalue(), pickled.tell())
        for name, text in ((".format_version", "1"), (".storage_alignment", "64"), ("byteorder", sys.byteorder)):
            archive.write_record(name, text.encode(), len(text))
        for index, entry in enumerate(entries):
            own = _alone_on_cpu(next(values), entry)
            if writing is not None:
                writing.result()
            writing = writer.submit(archive.write_record, f"data/{index}", own, entry.num_bytes)
            del own
            if entry.num_bytes > _LARGE:
                writing.result()
        if writing is not None:
            writing.result()
        assert next(values, None) is None, "more tensors than entries"
    return archive.written


def _alone_on_cpu(value: Tensor, entry: Entry) -> UntypedStorage:
    """The tensor's bytes in order and without those around it: it may look into a larger buffer."""
    assert tuple(value.shape) == entry.shape and value.dtype == entry.dtype, f"{value.shape} is not {entry}"
    own = value.cpu().contiguous()
    if own.untyped_storage().nbytes() != entry.num_bytes:
        own = own.clone()
    return own.untyped_storage()


class _Archive:
    """torch's zip writer onto a file that is hashed on the way."""

    def __init__(self, path: Path, whole: Whole | None) -> None:
        self._sink = TorchSink(path, whole)
        self._writer = torch._C.PyTorchFileWriter(self._sink)  # type: ignore[call-overload]

    @property
    def written(self) -> WrittenFile:
        """What the file is by now."""
        return self._sink.written

    def write_record(self, name: str, data: bytes | UntypedStorage, num_bytes: int) -> None:
        """Add a record. Raises: CheckpointError when it can't be written."""
        with self._sink.errors():
            self._writer.write_record(name, data, num_bytes)  # type: ignore[arg-type]

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._sink.give_up()
        self._writer.write_end_of_file()
        self._sink.__exit__(kind, error, at)


@dataclass(frozen=True)
class _Storage:
    """What the pickle says of a tensor's bytes."""

    key: str
    dtype: torch.dtype
    numel: int


class _SkeletonPickler(pickle.Pickler):
    """Pickles an `Entry` as torch.save pickles the contiguous tensor that it stands for."""

    def __init__(self, file: io.BytesIO, keys: Mapping[str, str]) -> None:
        super().__init__(file, protocol=_PICKLE_PROTOCOL)
        self._keys = keys

    def reducer_override(self, value: Any) -> Any:
        """Entries become calls that rebuild a tensor from its storage."""
        if not isinstance(value, Entry):
            return NotImplemented
        storage = _Storage(self._keys[value.name], value.dtype, math.prod(value.shape))
        # As torch counts them, where an empty axis has the stride of one element.
        strides = tuple(math.prod(max(size, 1) for size in value.shape[axis + 1 :]) for axis in range(len(value.shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (storage, 0, value.shape, strides, False, hooks)

    def persistent_id(self, value: Any) -> Any:
        """How torch names a storage inside its pickles."""
        if not isinstance(value, _Storage):
            return None
        kind = torch.storage._dtype_to_storage_type_map()[value.dtype]
        return ("storage", getattr(torch, kind), value.key, "cpu", value.numel)
