"""Reading weights of diffusers or transformers: one file, or shards with an index. Tensors stay memory-mapped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox import user_files
from cogvideox.errors import CheckpointError
from cogvideox.user_files import shown, shown_path
from cogvideox.weights.safetensors_stream import FLOATS
from cogvideox.weights.torch_file import load_file

WEIGHTS_STEM = "diffusion_pytorch_model"
Stems = Mapping[str, str]  # what weight files are called, by their suffix
DIFFUSERS_STEMS: Stems = {"safetensors": WEIGHTS_STEM, "bin": WEIGHTS_STEM}
TRANSFORMERS_STEMS: Stems = {"safetensors": "model", "bin": "pytorch_model"}
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class ModelFolder:
    """One model: its config.json, its tensors under diffusers' names, and the files that they come from."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]


def read_model_folder(folder: Path, class_name: str) -> ModelFolder:
    """Open a model folder of diffusers.

    Args:
        class_name: what its config.json has to say.

    Raises: CheckpointError when config or weights are missing, of another class, incomplete or damaged.
    """
    config = read_json(folder / "config.json")
    if config.get("_class_name") != class_name:
        raise CheckpointError(f"{folder} holds a {shown(config.get('_class_name'))}, a {class_name} is expected")
    index, files = find_weights(folder)
    return ModelFolder(folder, config, read_weights(index, files), tuple(files))


def read_weights(index: Path | None, files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of what `find_weights` found.

    Raises: CheckpointError for a damaged file, one of something else, and tensors that the index alone knows.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = load_file(file)
        if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
            raise CheckpointError(f"{file} holds something else than named tensors")
        tensors |= found
    absent = [name for name in weight_map(index) if name not in tensors] if index is not None else []
    if absent:
        raise CheckpointError(f"{index} lists {len(absent)} tensors that are in no file, e.g. {absent[0]}: {_AGAIN}")
    return tensors


def find_weights(folder: Path, stems: Stems = DIFFUSERS_STEMS) -> tuple[Path | None, list[Path]]:
    """The index, if there is one, and the weight files in order.

    Raises: CheckpointError when there are none, or not all.
    """
    for suffix, stem in stems.items():
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            return index, _indexed_files(index)
        if single.is_file():
            return None, [single]
    shards = sorted(file for stem in stems.values() for file in folder.glob(f"{stem}-*-of-*"))
    if shards:
        raise CheckpointError(f"{folder} has shards ({shards[0].name}, ...) but no index that lists them: {_AGAIN}")
    expected = f"{stems['safetensors']}.safetensors"
    raise CheckpointError(f"{folder} has no weights: expected {expected}, or shards with an index")


def read_json(file: Path) -> dict[str, Any]:
    """A configuration file. Raises: CheckpointError when it is missing or damaged."""
    if not os.path.exists(file):
        raise CheckpointError(f"no {file.name} in {file.parent}")
    return user_files.read_json(file, CheckpointError)


def check_same_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, source: str) -> None:
    """Raises: CheckpointError for weights of several types, unless they are all to become one, `dtype`; and for what is
    no float (or, as it is, a float of 8 bits), which no cast makes right."""
    odd = next((name for name, value in tensors.items() if not _is_writable(value.dtype, dtype)), None)
    if odd is not None:
        kind = str(tensors[odd].dtype).removeprefix("torch.")
        raise CheckpointError(f"{source} stores {odd} as {kind}: a quantised file; take the weights as floats")
    counts = Counter(value.dtype for value in tensors.values())
    if dtype is not None or len(counts) < 2:
        return
    rarest = min(counts, key=lambda kind: counts[kind])
    example = next(name for name, value in tensors.items() if value.dtype == rarest)
    shown = ", ".join(f"{count} of {kind}".replace("torch.", "") for kind, count in counts.most_common())
    raise CheckpointError(f"{source} mixes types: {shown} (e.g. {example}): choose one with --fp16, --bf16 or --fp32")


def _is_writable(stored: torch.dtype, dtype: torch.dtype | None) -> bool:
    return stored in FLOATS or (dtype is not None and stored.is_floating_point)


def _indexed_files(index: Path) -> list[Path]:
    names = sorted(set(weight_map(index).values()))
    absent = [name for name in names if not os.path.isfile(index.parent / name)]
    if absent:
        raise CheckpointError(
            f"{index} lists {len(absent)} of {len(names)} files that are not there, e.g. {shown_path(absent[0])}: "
            f"{_AGAIN}"
        )
    return [index.parent / name for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor. A file's name is one in the folder of the index.

    A link in that folder may lead elsewhere: whoever owns the disk made it (a cache of the Hugging Face hub consists of
    such links), while an index comes with the download.
    Raises: CheckpointError for a damaged index, and one that leads out of its folder.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index} has no weight_map: {_AGAIN}")
    outside = next((name for name in found.values() if not _is_plain_name(name)), None)
    if outside is not None:
        raise CheckpointError(f"{index} was refused: it lists {shown(outside)}, which is no file of its own folder")
    return found


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0\n")
