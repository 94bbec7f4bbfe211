"""Writing SAT's weight file tensor by tensor, so that a conversion or a merge never holds more than one in memory.

torch.save needs every tensor before it writes the first byte. Here the pickle of names, shapes and dtypes is written
first, and each tensor's bytes follow as the caller gives them. The file is byte for byte what torch.save puts into an
open file: a zip archive of `data.pkl` and, aligned for mapping, `data/0`, `data/1`, ...
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from cogvideox.weights.atomic import write_text_atomically
from cogvideox.weights.safetensors_stream import Entry, WrittenFile, cast_to
from cogvideox.weights.sat_folder import LATEST_FILE, STATES_FILE, states_content
from cogvideox.weights.torch_save import TorchSink

_PICKLE_PROTOCOL = 2  # torch.save's; old readers know no other


def write_sat_folder(
    partial: Path,
    iteration: int,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    extra: Mapping[str, Any],
) -> None:
    """Fill a temporary folder (`atomic.new_folder`) with one iteration, and `latest` that names it.

    Arguments and errors as `stream_states`.
    """
    folder = partial / str(iteration)
    folder.mkdir()
    stream_states(folder, iteration, entries, tensors, extra)
    write_text_atomically(partial / LATEST_FILE, folder.name)


def stream_states(
    partial: Path,
    iteration: int,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    extra: Mapping[str, Any],
) -> WrittenFile:
    """Write `mp_rank_00_model_states.pt` into a temporary iteration folder (`sat_folder.begin_iteration`).

    Args:
        entries: every tensor under its stored name, in the order in which `tensors` gives them.
        tensors: names and values; each is cast to its entry's dtype and dropped after it is written.
        extra: "lora" and "base" of the entry "cogvideox".

    Raises: CheckpointError for a value that is not finite (or not in the entry's dtype), or a full disk.
    """
    content = states_content(iteration, {entry.name: entry for entry in entries}, extra)
    return stream_torch_file(partial / STATES_FILE, content, entries, tensors)


def stream_torch_file(
    path: Path,
    content: object,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
) -> WrittenFile:
    """Write `content`, in which an `Entry` stands for each tensor. Arguments and errors as `stream_states`."""
    pickled = io.BytesIO()
    _SkeletonPickler(pickled, {entry.name: str(index) for index, entry in enumerate(entries)}).dump(content)
    writing: Future[None] | None = None
    with _Archive(path) as archive, ThreadPoolExecutor(1) as writer:  # while one is written, the next is made
        archive.write_record("data.pkl", pickled.getvalue(), pickled.tell())
        for name, text in ((".format_version", "1"), (".storage_alignment", "64"), ("byteorder", sys.byteorder)):
            archive.write_record(name, text.encode(), len(text))
        for (index, entry), (name, value) in zip(enumerate(entries), tensors, strict=True):
            assert name == entry.name and tuple(value.shape) == entry.shape, f"{name} is not {entry}"
            own = cast_to(name, value, entry.dtype).contiguous()
            if own.untyped_storage().nbytes() != entry.num_bytes:
                own = own.clone()  # a view: its buffer holds more
            if writing is not None:
                writing.result()
            writing = writer.submit(archive.write_record, f"data/{index}", own.untyped_storage(), entry.num_bytes)
        if writing is not None:
            writing.result()
    return archive.written


class _Archive:
    """torch's zip writer onto a file that is hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._sink = TorchSink(path)
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
