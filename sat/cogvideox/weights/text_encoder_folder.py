"""T5 as SAT users have it, all files in one folder, and as diffusers has it: text_encoder/ and tokenizer/."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.weights.hashes import FAST, new_hash
from cogvideox.weights.model_folder import TRANSFORMERS_STEMS, find_weights, read_json, read_weights
from cogvideox.weights.safetensors_stream import MAX_SHARD_BYTES, Entry, WrittenFile, write_model
from cogvideox.weights.t5_config import t5_settings

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.json",
)
# What tokenizer_config.json may say -> what model_index.json says; anything else is a T5Tokenizer.
_TOKENIZER_CLASSES = {
    "TokenizersBackend": "PreTrainedTokenizerFast",
    "PreTrainedTokenizerFast": "PreTrainedTokenizerFast",
}
_BLOCK = 2**20  # bytes per read


@dataclass(frozen=True)
class TextEncoderFiles:
    """A T5 encoder and its tokenizer; everything is there, and weights can be opened."""

    configs: tuple[Path, ...]  # config.json first
    index: Path | None  # which weight file holds what, for several
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...]
    tokenizer_class: str  # under a name that every release of transformers knows

    @property
    def folder(self) -> Path:
        """Where the encoder is."""
        return self.configs[0].parent

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is."""
        return self.tokenizer[0].parent

    @property
    def settings(self) -> dict[str, Any]:
        """What the encoder is built from. Raises: CheckpointError as `t5_settings`."""
        return t5_settings(read_json(self.configs[0]), str(self.configs[0]))

    @property
    def encoder(self) -> tuple[Path, ...]:
        """Everything of the encoder."""
        return (*self.configs, *([self.index] if self.index is not None else []), *self.weights)

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.encoder, *self.tokenizer)

    def num_bytes(self, dtype: torch.dtype | None = None) -> int:
        """Of all files; with a dtype, after the weights have been cast to it."""
        if dtype is None:
            return sum(file.stat().st_size for file in self.all)
        rest = sum(file.stat().st_size for file in (*self.configs, *self.tokenizer))
        return rest + sum(entry.num_bytes for entry in _entries(self.read(), dtype))

    def read(self) -> dict[str, Tensor]:
        """The weights. Raises: CheckpointError for damaged files."""
        return read_weights(self.index, self.weights)


def text_encoder_files(source: Path) -> TextEncoderFiles:
    """Find encoder and tokenizer, and open the weights, of which only names and shapes are read.

    Args:
        source: a folder with all files together, or one with text_encoder/ and tokenizer/ inside.

    Raises: CheckpointError when config, weights or vocabulary are missing or damaged.
    """
    inside = (source / "text_encoder").is_dir() and (source / "tokenizer").is_dir()
    encoder, tokenizer = (source / "text_encoder", source / "tokenizer") if inside else (source, source)
    if not (encoder / _CONFIG).is_file():
        raise CheckpointError(f"{encoder} is not a T5 text encoder: it needs config.json and weights")
    configs = [file for name in (_CONFIG, _GENERATION) if (file := encoder / name).is_file()]
    t5_settings(read_json(configs[0]), str(configs[0]))
    for file in configs[1:]:
        read_json(file)
    index, weights = find_weights(encoder, TRANSFORMERS_STEMS)
    if not any(_is_old_pickle(file) for file in weights):
        read_weights(index, weights)
    vocabulary = [file for name in _TOKENIZER_FILES if (file := tokenizer / name).is_file()]
    if not any(file.name in ("spiece.model", "tokenizer.json") for file in vocabulary):
        raise CheckpointError(f"{tokenizer} holds no T5 tokenizer: it needs spiece.model or tokenizer.json")
    for file in vocabulary:
        if file.suffix == ".json":
            read_json(file)
    return TextEncoderFiles(tuple(configs), index, tuple(weights), tuple(vocabulary), _tokenizer_class(tokenizer))


def copy_files(files: Iterable[Path], target: Path) -> list[WrittenFile]:
    """Copy files into one folder, made if need be. Raises: CheckpointError when the disk is full."""
    target.mkdir(parents=True, exist_ok=True)
    return [_copy(file, target) for file in files]


def cast_encoder(
    files: TextEncoderFiles, target: Path, dtype: torch.dtype, max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[WrittenFile]:
    """Write the encoder in another type into a folder, made if need be, tensor by tensor. Returns the weight files.

    Raises: CheckpointError for a value beyond the dtype, or when the disk is full.
    """
    state = files.read()
    copy_files(files.configs, target)
    config = read_json(files.configs[0])
    config.pop("torch_dtype", None)  # what transformers before 5 wrote; it would contradict
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return write_model(target, "model", _entries(state, dtype), state.items(), max_shard_bytes=max_shard_bytes)


def _entries(state: dict[str, Tensor], dtype: torch.dtype) -> list[Entry]:
    return [
        Entry(name, tuple(value.shape), dtype if value.is_floating_point() else value.dtype)
        for name, value in state.items()
    ]


def _copy(file: Path, target: Path) -> WrittenFile:
    """Copy and hash in one go."""
    digest, copy = new_hash(FAST), target / file.name
    try:
        with file.open("rb") as old, copy.open("wb") as new:
            while block := old.read(_BLOCK):
                digest.update(block)
                new.write(block)
        return WrittenFile(file.name, copy.stat().st_size, digest.hexdigest())
    except OSError as error:
        raise CheckpointError(f"copying {file} to {target} failed: {error.strerror}") from error


def _is_old_pickle(file: Path) -> bool:
    """Whether a file is of torch before 1.6: no zip archive, so that opening would read all of it."""
    with file.open("rb") as opened:
        return file.suffix == ".bin" and opened.read(1) == b"\x80"


def _tokenizer_class(folder: Path) -> str:
    file = folder / "tokenizer_config.json"
    name = read_json(file).get("tokenizer_class") if file.is_file() else None
    return _TOKENIZER_CLASSES.get(str(name), "T5Tokenizer")
