"""T5 as SAT users have it, all files in one folder, and as diffusers has it: text_encoder/ and tokenizer/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from cogvideox.errors import CheckpointError

_ENCODER_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
_ENCODER_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
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


def text_encoder_files(source: Path) -> tuple[list[Path], list[Path]]:
    """The files of encoder and tokenizer.

    Args:
        source: a folder with all files together, or one with text_encoder/ and tokenizer/ inside.

    Raises: CheckpointError when config, weights or vocabulary are missing.
    """
    inside = (source / "text_encoder").is_dir() and (source / "tokenizer").is_dir()
    encoder, tokenizer = (source / "text_encoder", source / "tokenizer") if inside else (source, source)
    files = _matching(encoder, _ENCODER_FILES)
    if not any(file.suffix == ".safetensors" for file in files):
        files += _matching(encoder, _ENCODER_PICKLES)
    vocabulary = _matching(tokenizer, _TOKENIZER_FILES)
    if not (encoder / "config.json").is_file() or not any(f.suffix in (".safetensors", ".bin") for f in files):
        raise CheckpointError(f"{encoder} is not a T5 text encoder: it needs config.json and weights")
    for index in [file for file in files if file.name.endswith(".index.json")]:
        _check_shards(index)
    if not any(file.name in ("spiece.model", "tokenizer.json") for file in vocabulary):
        raise CheckpointError(f"{tokenizer} holds no T5 tokenizer: it needs spiece.model or tokenizer.json")
    return files, vocabulary


def copy_text_encoder(source: Path, folder: Path) -> str:
    """Copy a T5 folder's files to text_encoder/ and tokenizer/; return the tokenizer's class name.

    Raises: CheckpointError as `text_encoder_files`, or when the disk is full.
    """
    files, vocabulary = text_encoder_files(source)
    copy_files(files, folder / "text_encoder")
    copy_files(vocabulary, folder / "tokenizer")
    return _tokenizer_class(vocabulary[0].parent)


def copy_files(files: Iterable[Path], target: Path) -> None:
    """Copy files into one folder, made if need be. Raises: CheckpointError when the disk is full."""
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            shutil.copyfile(file, target / file.name)
        except OSError as error:
            raise CheckpointError(f"copying {file} to {target} failed: {error.strerror}") from error


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _check_shards(index: Path) -> None:
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    absent = sorted(name for name in names if not (index.parent / name).is_file())
    if absent:
        raise CheckpointError(f"{index} lists {len(absent)} of {len(names)} files that are not there, e.g. {absent[0]}")


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _tokenizer_class(folder: Path) -> str:
    """The tokenizer's class, under a name that every release of transformers knows."""
    file = folder / "tokenizer_config.json"
    name = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else None
    return _TOKENIZER_CLASSES.get(name or "", "T5Tokenizer")
