"""Reading one weight file (.pt or .safetensors), without running code from it or loading it into memory.

Tensors stay memory-mapped: they occupy page cache, not anonymous memory, until somebody copies them.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.weights.hashes import SHA256, hash_of
from cogvideox.weights.zip_layout import check_layout

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGICS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LFS_MAGIC = b"version https://git-lfs"
_UNWANTED_GLOBAL = re.compile(r"GLOBAL ([\w.<>]+)|unrecognized function ([^\n]+)|allowlisted[^\n]* got ([^\n]+)")
# What damaged bytes were seen to raise while torch's unpickler followed them.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_NUMBER_CODES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))


class _NumberType:
    """Stands for numpy.dtype while a file is read: the real one can be brought to corrupt memory by a crafted state."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _NUMBER_CODES:
            raise ValueError(f"numpy type {code!r} is none of the plain numbers")
        self.code = code

    def __setstate__(self, state: Sequence[object]) -> None:
        """Byte order is the second entry; plain numbers have no other state."""
        if state[1] == ">":
            raise ValueError("numpy numbers of a big-endian machine")


class _Array:
    """Stands for numpy.ndarray while a file is read. Old checkpoints keep RNG states in arrays; nobody needs them."""

    def __setstate__(self, state: object) -> None:
        """The contents are dropped."""


def _make_array(*_: object) -> _Array:
    return _Array()


def _make_number(kind: object, raw: object = b"") -> bool | int | float:
    if not isinstance(kind, _NumberType) or not isinstance(raw, bytes):
        raise ValueError("a numpy number without type or bytes")
    return np.frombuffer(raw, kind.code)[0].item()


# What old training checkpoints hold beside tensors: arguments, numbers and RNG states. Everything here is ours or
# inert, so nothing that a file says can run code. numpy 1 and 2 pickle the same functions under different names.
_HARMLESS_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_NumberType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_make_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_make_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def load_file(path: Path, stand_ins: Sequence[Any] = ()) -> Any:
    """Return what a weight file holds, its tensors memory-mapped where the format allows it.

    stand_ins: (our inert object, "the.name.it.replaces") for what such files hold beyond the usual.

    `.safetensors` gives a dict of tensors; torch files give what was saved, with numpy's numbers as Python's and
    numpy's arrays as empty placeholders. Files of torch before 1.6 are not zip archives and can't be mapped: they are
    read into memory.

    Raises: CheckpointError for a missing, empty, truncated or foreign file, and for a pickle that asks for code.
    """
    head = _read_head(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    is_zip = head.startswith(_ZIP_MAGIC)
    if not is_zip and not head.startswith(_PICKLE_MAGICS):
        raise CheckpointError(
            f"{path} is not a torch checkpoint (it starts with {head[:12]!r}); valid: .pt or .safetensors"
        )
    try:
        if is_zip:
            check_layout(path)
        with torch.serialization.safe_globals([*_HARMLESS_GLOBALS, *stand_ins]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        _check_tensors(content, path.stat().st_size)
        return content
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unpickling_message(path, str(error))) from error
    except _DAMAGE as error:
        raise CheckpointError(_broken_message(path, error)) from error


def _check_tensors(content: object, file_bytes: int) -> None:
    """Raises: ValueError for tensors that hold less, or claim more, than plain ones of their shape."""
    storages: dict[int, int] = {}
    for name, value in named_tensors(content):
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{name[:80]!r} is no plain tensor but {value.layout}, {value.dtype}, {value.device}")
        storage = value.untyped_storage()
        if value.numel() * value.element_size() > storage.nbytes():
            raise ValueError(f"{name[:80]!r} of shape {list(value.shape)} has only {storage.nbytes():,} bytes")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > file_bytes:
        raise ValueError(f"its tensors take {sum(storages.values()):,} bytes")


def named_tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts and lists, however often these hold each other."""
    waiting: list[tuple[str, object]] = [("", content)]
    seen: set[int] = set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting.extend((f"{name}.{key}".removeprefix("."), each) for key, each in items)


def _read_head(path: Path) -> bytes:
    """First bytes of the file, after ruling out what is no weight file at all."""
    if not path.is_file():
        raise CheckpointError(f"no weight file at {path}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): copy or download it again")
    if head.startswith(_LFS_MAGIC):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page saved under the name of a weight file: download the file itself")
    return head


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_broken_message(path, error)) from error


def _unpickling_message(path: Path, text: str) -> str:
    match = _UNWANTED_GLOBAL.search(text)
    if match is None:
        return _broken_message(path, ValueError(text))
    wanted = next(group for group in match.groups() if group).split(" was not")[0].strip().rstrip(".")
    return (
        f"{path} was refused: it asks for {wanted}, which is not among the plain tensors, numbers and "
        "arguments that a weight file may hold (it could run code). Use a file that holds tensors only"
    )


def _broken_message(path: Path, error: Exception) -> str:
    first_line = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0][:160]
    size = f"{path.stat().st_size:,} bytes"
    return f"{path} is truncated or damaged ({size}; {first_line}): copy or download it again"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; about 0.6 s per GB."""
    return hash_of(path, SHA256)
