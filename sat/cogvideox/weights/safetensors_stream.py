"""Writing safetensors files tensor by tensor, so that a conversion never holds more than a few tensors in memory.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data in
one gapless piece. All sizes are known beforehand, so the header is written first and the data streams after it.
Source: the format section of safetensors' documentation.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import failed_write
from cogvideox.weights.hashes import HashedFile

MAX_SHARD_BYTES = 10 * 10**9  # what diffusers' own save_pretrained uses
_ALIGNMENT = 8  # bytes; readers map the data as numbers of up to this size
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what weights are stored and computed in


@dataclass(frozen=True)
class Entry:
    """One tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        """Raises: CheckpointError for a type that isn't written."""
        if self.dtype not in _DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise CheckpointError(f"{self.name} is stored as {self.dtype}, which is not written; valid are {known}")

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class WrittenFile:
    """One file that was written; `name` is relative to the folder."""

    name: str
    num_bytes: int
    xxh3_128: str  # in hexadecimal


def write_model(
    folder: Path,
    stem: str,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    header: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[WrittenFile]:
    """Write `<stem>.safetensors`, or numbered shards with `<stem>.safetensors.index.json` when it is too large.

    Args:
        entries: every tensor, in the order in which `tensors` gives them.
        tensors: names and values; each is cast to its entry's dtype and dropped after it is written.
        header: text for the file's `__metadata__`.

    Raises: CheckpointError when a value does not fit the dtype, or the disk is full.
    """
    shards = _split_shards(entries, max_shard_bytes)
    names = [f"{stem}-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    stream = iter(tensors)
    written = [
        write_file(folder / name, shard, stream, header=header) for name, shard in zip(names, shards, strict=True)
    ]
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.num_bytes for entry in entries)},
            "weight_map": {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
    return written


def write_file(
    path: Path,
    entries: Sequence[Entry],
    tensors: Iterator[tuple[str, Tensor]],
    *,
    header: Mapping[str, str] | None = None,
) -> WrittenFile:
    """Write one safetensors file, taking as many tensors from the iterator as it has entries.

    Raises: CheckpointError when a value does not fit the dtype, or the disk is full.
    """
    head = _header_bytes(entries, header or {"format": "pt"})
    try:
        with HashedFile(path) as file:
            file.write(head)
            for entry in entries:
                name, value = next(tensors)
                assert name == entry.name and tuple(value.shape) == entry.shape, f"{name} is not {entry}"
                file.write(_raw_bytes(cast_to(name, value, entry.dtype)))
            return WrittenFile(path.name, file.num_bytes, file.xxh3_128)
    except OSError as error:
        raise failed_write(path, error, path.parent, sum(entry.num_bytes for entry in entries)) from error


def _split_shards(entries: Sequence[Entry], max_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _header_bytes(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for entry in entries:
        span = [offset, offset + entry.num_bytes]
        header[entry.name] = {"dtype": _DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def cast_to(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """The value in `dtype`, on the CPU.

    Raises: CheckpointError for NaN and infinity, whether they were there or float16 can't hold a number, and for what
        would become other weights when it is cast: integers and complex numbers.
    """
    if dtype.is_floating_point and not value.is_floating_point():
        raise CheckpointError(f"{name} is stored as {value.dtype}: a quantised file; take the weights as floats")
    cast = value.detach().to("cpu", dtype)
    if is_finite(cast):
        return cast
    if is_finite(value):
        raise CheckpointError(f"{name} holds {value.abs().max().item():.3g}, beyond float16's 65504: choose bfloat16")
    raise CheckpointError(f"NaN or infinity in {name}: training diverged; take an earlier checkpoint")


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(finite_flag(value))


def finite_flag(value: Tensor) -> Tensor:
    """`is_finite` as a tensor on the value's device, so that nobody has to wait for it yet."""
    if value.numel() == 0 or not (value.is_floating_point() or value.is_complex()):
        return torch.ones((), dtype=torch.bool, device=value.device)
    if value.dtype not in FLOATS:  # complex numbers, and floats of 8 bits, which aminmax doesn't take
        return torch.isfinite(value.detach() if value.is_complex() else value.detach().float()).all()
    # The extremes are NaN or infinite exactly when some element is; unlike isfinite() this needs no copy.
    low, high = torch.aminmax(value.detach())
    return torch.isfinite(low) & torch.isfinite(high)


def _raw_bytes(value: Tensor) -> memoryview:
    """The tensor's memory; a memory-mapped tensor is not copied. The view keeps the tensor alive."""
    return value.contiguous().flatten().view(torch.uint8).numpy().data
