"""One entry of a cache: a safetensors file that says what it is, and has a checksum over all of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cogvideox.data.survey import NotCachedError
from cogvideox.errors import DataError
from cogvideox.log import amount
from cogvideox.weights.hashes import FAST, new_hash

_CHECKSUM = "checksum"


@dataclass(frozen=True, eq=False)
class Entry:
    """What a file holds. facts: key, format and whatever its writer said."""

    tensors: dict[str, Tensor]
    facts: dict[str, str]


def write_entry(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> int:
    """Write beside and rename: whoever looks sees all of it or nothing. Returns: its bytes.

    tensors: on the CPU, contiguous. Raises: DataError for a full disk, or a folder without permission.
    """
    stated = dict(facts)
    content = save(dict(tensors), metadata={**stated, _CHECKSUM: _checksum(tensors, stated)})
    write_beside(file, content)
    return len(content)


def write_beside(file: Path, content: bytes) -> None:
    """Write under a name of this process's own and rename, so that several may write the same file at once.

    Raises: DataError as above.
    """
    beside = file.with_name(f"{file.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        beside.replace(file)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise cannot_write(file, error, len(content)) from error


def cannot_write(file: Path, error: OSError, num_bytes: int = 0) -> DataError:
    """What to say where nothing can be written."""
    place = next((each for each in file.parents if each.is_dir()), Path("/"))
    room = f"{amount(num_bytes)} needed, {amount(shutil.disk_usage(place).free)} free there; " if num_bytes else ""
    return DataError(
        f"the cache can't be written: {error.strerror or error} ({file}); {room}what is in it already stays good, and "
        "the same command goes on from there; args.cache names another folder"
    )


def read_entry(file: Path, key: str) -> Entry:
    """Read and check it.

    Raises: NotCachedError where there is none; DataError for one that is damaged, or isn't what its name says.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise NotCachedError(f"{file} is not there") from None
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = dict(header["__metadata__"])
        tensors = load(content)
        checksum = facts.pop(_CHECKSUM)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(_damaged(file, "it is no whole file")) from error
    if checksum != _checksum(tensors, facts):
        raise DataError(_damaged(file, "its checksum is wrong"))
    if facts.get("key") != key:
        raise DataError(_damaged(file, f"it holds another entry, {facts.get('key')}"))
    return Entry(tensors, facts)


def _damaged(file: Path, how: str) -> str:
    return f"{file} is damaged ({how}): remove it, and fill the cache again"


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = new_hash(FAST)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return str(digest.hexdigest())
