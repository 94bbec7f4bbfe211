"""Checkpoints in SAT's layout.

    <folder>/latest                                   text: the iteration to load
    <folder>/<iteration>/mp_rank_00_model_states.pt   {"module": {name: tensor}, "cogvideox": {...}}
    <folder>/<iteration>/manifest.json                hashes of what we wrote (weights.manifest)
    <folder>/<iteration>-ema/...                      averaged weights, never named by `latest`

The entry "cogvideox" is ours:
{"format": 1, "iteration": int, "lora": {...} | None, "base": {"path", "sha256"} | None}.
Published checkpoints and old training runs don't have it. Files that hold the tensors at the top level, or under
"state_dict", are read as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.user_files import read_text, shown, shown_path
from cogvideox.weights.atomic import begin_folder, commit_folder, new_folder, write_text_atomically
from cogvideox.weights.manifest import write_checkpoint_manifest
from cogvideox.weights.safetensors_stream import WrittenFile, is_finite
from cogvideox.weights.torch_file import load_file, sha256_of
from cogvideox.weights.torch_save import Whole, save_hashed
from cogvideox.weights.vae_map import check_whole

STATES_FILE = "mp_rank_00_model_states.pt"
LATEST_FILE = "latest"
VAE_FILE = "3d-vae.pt"
FORMAT = 1
_STATES_SUFFIXES = (".pt", ".safetensors")  # others are hashes, notes and half downloads beside them
_ITERATION_NAME = re.compile(r"[\w-][\w.-]{0,99}")  # 1000, global_step1000, 1000-ema
_VAE_PREFIX = "first_stage_model."
_VAE_DROPPED = "loss."  # the discriminator and perceptual loss that the VAE was trained with


@dataclass(frozen=True)
class SatCheckpoint:
    """A checkpoint that was opened. `module` holds memory-mapped CPU tensors under their stored names."""

    path: Path  # the weight file itself
    iteration: int  # 0 when neither the file nor its folder says
    module: dict[str, Tensor]
    extra: dict[str, Any]  # the entry "cogvideox", {} in files that we did not write


def read_checkpoint(path: str | Path, iteration: int | str | None = None) -> SatCheckpoint:
    """Open a checkpoint: a folder with `latest`, an iteration folder, or a .pt / .safetensors file.

    Args:
        path: where it is.
        iteration: which one to take instead of the one that `latest` names (a number, or e.g. "500-ema").

    Raises: CheckpointError when it is missing, damaged, split over model-parallel ranks, unsafe or without tensors.
    """
    file = find_states_file(path, iteration)
    content = load_file(file)
    extra = content.get("cogvideox", {}) if isinstance(content, Mapping) else {}
    if not isinstance(extra, dict):
        raise CheckpointError(f"{file}: its entry 'cogvideox' is a {type(extra).__name__}, a dict is expected")
    if extra.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"{file} has format {extra['format']}; this version reads format {FORMAT}: update it")
    for key in ("lora", "base"):
        if not isinstance(extra.get(key, {}), dict | None):
            kind = type(extra[key]).__name__
            raise CheckpointError(f"{file}: '{key}' of its entry 'cogvideox' is a {kind}, a dict is expected")
    return SatCheckpoint(file, _iteration_of(file, extra), _tensors_of(content, file), extra)


def find_states_file(path: str | Path, iteration: int | str | None = None) -> Path:
    """The weight file that `path` (and `iteration`) means. Raises: CheckpointError as `read_checkpoint`."""
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise CheckpointError(
            f"no checkpoint at {shown_path(path)}: valid are a folder with '{LATEST_FILE}', an iteration folder or a "
            "file"
        )
    if path.is_file() and iteration is not None:
        raise CheckpointError(
            f"{path} is one file: iteration {iteration} can be asked of a folder with '{LATEST_FILE}'"
        )
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path} is neither a file nor a folder (a pipe, or a device)")
    if iteration is None and not (path / LATEST_FILE).exists() and _states_in(path):
        return _single_states_file(path)
    name = str(iteration) if iteration is not None else read_latest(path)
    if not os.path.isdir(path / name):
        source = "asked for" if iteration is not None else f"named by {path / LATEST_FILE}"
        raise CheckpointError(f"{path} has no iteration {shown(name)} ({source}); there: {_describe_iterations(path)}")
    return _single_states_file(path / name)


def read_latest(folder: Path) -> str:
    """The name of the iteration folder that `latest` holds. Raises: CheckpointError for none, or nonsense."""
    file = folder / LATEST_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no file '{LATEST_FILE}' that names an iteration; "
            f"there: {_describe_iterations(folder)}. Give one of these, or write its name into that file"
        )
    name = read_text(file, CheckpointError).strip()
    if not _ITERATION_NAME.fullmatch(name):
        raise CheckpointError(f"{file} holds {shown(name)}, expected the name of an iteration folder such as 1000")
    return name


def _describe_iterations(folder: Path) -> str:
    """The sub-folders that hold a checkpoint or a `latest`, for messages."""
    found = sorted(child.name for child in folder.iterdir() if child.is_dir() and _states_in(child))
    nested = sorted(child.name + "/" for child in folder.iterdir() if (child / LATEST_FILE).is_file())
    return ", ".join(found + nested) or "no checkpoint"


def _states_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("mp_rank_*_model_states.*") if file.suffix in _STATES_SUFFIXES)


def _single_states_file(folder: Path) -> Path:
    files = _states_in(folder)
    if not files and any(folder.glob("*zero_pp_rank_*")):
        raise CheckpointError(f"{folder} holds the ZeRO shards of a training run: run tools/consolidate_zero.py on it")
    if not files:
        names = ", ".join(sorted(child.name for child in folder.iterdir())[:5]) or "nothing"
        raise CheckpointError(f"{folder} has no {STATES_FILE} (it holds: {names})")
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} is split over {len(files)} model-parallel ranks ({files[-1].name}): merge it first"
        )
    return files[0]


def _iteration_of(file: Path, extra: Mapping[str, Any]) -> int:
    if isinstance(extra.get("iteration"), int):
        return extra["iteration"]
    match = re.match(r"\d+", file.parent.name)
    return int(match.group()) if match else 0


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The named tensors of a file: under "module", under "state_dict", or at its top level."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, expected a dict with 'module' or 'state_dict'")
    for entry in ("module", "state_dict"):
        if isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{file} holds no tensors; its entries: {', '.join(map(str, list(content)[:5])) or 'none'}"
        )
    return tensors


def read_vae(path: str | Path, *, check: bool = True) -> dict[str, Tensor]:
    """Tensors of the VAE under the names encoder.* and decoder.*.

    From 3d-vae.pt, its folder, or a whole-engine checkpoint. What only its training needed (loss.*) is dropped.
    check: whether it is a whole one; for those who compare it with their own.
    Raises: CheckpointError when it is missing, damaged, or holds no VAE or only a part of one.
    """
    path = Path(os.path.expanduser(path))
    file = path / VAE_FILE if (path / VAE_FILE).is_file() else find_states_file(path)
    tensors = _tensors_of(load_file(file), file)
    if any(name.startswith(_VAE_PREFIX) for name in tensors):
        tensors = {
            name.removeprefix(_VAE_PREFIX): value for name, value in tensors.items() if name.startswith(_VAE_PREFIX)
        }
    vae = {name: value for name, value in tensors.items() if not name.startswith(_VAE_DROPPED)}
    if not any(name.startswith(("encoder.", "decoder.")) for name in vae):
        first = ", ".join(list(tensors)[:3])
        raise CheckpointError(f"{file} holds no VAE (encoder.*, decoder.*); its first names: {first}")
    if check:
        check_whole({name: value.shape for name, value in vae.items()}, str(file))
    return vae


def fingerprint(path: str | Path) -> str:
    """SHA-256, in hexadecimal, of the weight file that `path` means. Raises: CheckpointError for none."""
    return sha256_of(find_states_file(path))


def write_checkpoint(
    folder: str | Path,
    iteration: int,
    module: Mapping[str, Tensor],
    extra: Mapping[str, Any],
    *,
    variant: str = "",
    overwrite: bool = False,
) -> Path:
    """Write `<folder>/<iteration>[-variant]/` as a whole or not at all, then `latest`; return that folder.

    Args:
        module: tensors under their stored names, on any device.
        extra: "lora" and "base" of the entry "cogvideox"; format and iteration are filled in here.
        variant: e.g. "ema" gives `<iteration>-ema`, which `latest` does not name.
        overwrite: replace an iteration folder that exists, instead of refusing.

    Raises: CheckpointError for a non-finite tensor, an existing folder, a place without space or permission.
    """
    with new_iteration(folder, iteration, tensor_bytes(module), variant=variant, overwrite=overwrite) as (
        partial,
        final,
    ):
        written = write_states(partial, iteration, module, extra, tensor_bytes(module))
        write_checkpoint_manifest(partial, iteration, [written])
    return final


def tensor_bytes(module: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take in a file."""
    return sum(value.numel() * value.element_size() for value in module.values())


@contextmanager
def new_iteration(
    folder: str | Path, iteration: int, needed_bytes: int, *, variant: str = "", overwrite: bool = False
) -> Iterator[tuple[Path, Path]]:
    """(temporary, final) iteration folder; when the block succeeds it gets its name, and then `latest` its number.

    Arguments and errors as `write_checkpoint`.
    """
    final = Path(folder).expanduser() / (f"{iteration}-{variant}" if variant else str(iteration))
    with new_folder(final, needed_bytes, overwrite=overwrite) as partial:
        yield partial, final
    if not variant:
        write_text_atomically(final.parent / LATEST_FILE, str(iteration), needed_bytes)


def begin_iteration(
    folder: str | Path, iteration: int, needed_bytes: int, *, overwrite: bool = False
) -> tuple[Path, Path]:
    """First step of a save by several processes: (temporary, final folder).

    One process calls this; all may then write into the temporary folder; one calls `commit_iteration`.
    Raises: CheckpointError when the final folder exists (unless `overwrite`), or without space or permission.
    """
    final = Path(folder).expanduser() / str(iteration)
    return begin_folder(final, needed_bytes, overwrite=overwrite), final


def write_states(
    partial: Path,
    iteration: int,
    module: Mapping[str, Tensor],
    extra: Mapping[str, Any],
    needed_bytes: int | None = None,
) -> WrittenFile:
    """Write the weight file into a temporary iteration folder; tensors come from their device one by one.

    needed_bytes: of all files of the iteration, to be named where the disk is full.
    Raises: CheckpointError for a non-finite tensor and a full disk.
    """
    check_finite(module)
    content = states_content(iteration, module, extra)
    return save_hashed(partial / STATES_FILE, content, Whole(partial, needed_bytes))


def states_content(iteration: int, module: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a weight file holds, before it is pickled."""
    header = {"lora": None, "base": None, **extra, "format": FORMAT, "iteration": iteration}
    return {"module": dict(module), "cogvideox": header}


def commit_iteration(partial: Path, final: Path, iteration: int, needed_bytes: int | None = None) -> None:
    """Last step of a save by several processes: sync, rename, and only then point `latest` to it."""
    commit_folder(partial, final, needed_bytes)
    write_text_atomically(final.parent / LATEST_FILE, str(iteration), needed_bytes)


def check_finite(module: Mapping[str, Tensor]) -> None:
    """Raises: CheckpointError that names the tensors with NaN or infinity. Such weights are never written."""
    broken = [name for name, value in module.items() if not is_finite(value)]
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise CheckpointError(
            f"not saved: NaN or infinity in {shown}. Training diverged: lower the learning rate or use bf16"
        )
