"""Finding a diffusers pipeline, or a part of one, in a folder or on the Hugging Face hub."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.conversion.diffusers_import.options import PARTS, Options
from cogvideox.conversion.hub import download
from cogvideox.conversion.licences import LICENCE_FILES
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.user_files import shown
from cogvideox.weights.atomic import check_writable
from cogvideox.weights.diffusers_folder import IMAGE_PIPELINE, TEXT_PIPELINE
from cogvideox.weights.model_folder import read_json

TRANSFORMER_CLASS, VAE_CLASS = "CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX"
# Pipelines with these parts; only what they do with them differs.
PIPELINES = (TEXT_PIPELINE, IMAGE_PIPELINE, "CogVideoXVideoToVideoPipeline")
_SUBFOLDERS = {
    "transformer": ("transformer",),
    "vae": ("vae",),
    "text_encoder": ("text_encoder", "tokenizer"),
}
_ALONE = {TRANSFORMER_CLASS: "transformer", VAE_CLASS: "vae"}


@dataclass(frozen=True)
class Source:
    """Where the parts are. `pipeline` is the class that model_index.json names; None for a lone model."""

    root: Path
    parts: tuple[str, ...]  # those that will be converted
    pipeline: str | None

    def folder(self, part: str) -> Path:
        """The folder of transformer, vae or scheduler; of the text encoder, what holds its two folders."""
        return self.root if self.pipeline is None or part == "text_encoder" else self.root / part


def find_source(options: Options) -> Source:
    """The folder that was asked for, downloaded if it is on the hub.

    Raises: CheckpointError when there is none, it can't be had, or holds something else; ConfigError for parts that it
        doesn't have.
    """
    root = Path(os.path.expanduser(options.source))
    root = root.resolve() if os.path.exists(root) else _download(options)
    if root.is_file():
        raise CheckpointError(f"{root} is a file; a diffusers folder with model_index.json or config.json is expected")
    index, config = root / "model_index.json", root / "config.json"
    if index.is_file():
        name = read_json(index).get("_class_name")
        if name not in PIPELINES:
            raise CheckpointError(f"{index} describes a {shown(name)}; CogVideoX pipelines are {', '.join(PIPELINES)}")
        return Source(root, _chosen(options, _present(root)), name)
    if config.is_file() and read_json(config).get("_class_name") in _ALONE:
        return Source(root, _chosen(options, (_ALONE[read_json(config)["_class_name"]],)), None)
    raise CheckpointError(
        f"{root} is no diffusers folder: it has neither model_index.json nor the config.json of a {TRANSFORMER_CLASS} "
        f"or {VAE_CLASS}"
    )


def _present(root: Path) -> tuple[str, ...]:
    return tuple(part for part in PARTS if all((root / name).is_dir() for name in _SUBFOLDERS[part]))


def _chosen(options: Options, present: tuple[str, ...]) -> tuple[str, ...]:
    absent = [part for part in options.parts or () if part not in present]
    if absent:
        raise ConfigError(f"--only {absent[0]}: {options.source} has {', '.join(present) or 'no parts'}")
    if not present:
        raise CheckpointError(f"{options.source} has none of the folders transformer, vae, text_encoder")
    return options.parts or present


def _download(options: Options) -> Path:
    """The local snapshot of a hub model; what an interrupted download has got is kept and completed."""
    from huggingface_hub import constants

    name, cache = options.source, options.cache_dir or Path(constants.HF_HUB_CACHE)
    patterns = [
        "*.json",
        *LICENCE_FILES,
        *(f"{folder}/*" for part in options.parts or PARTS for folder in _SUBFOLDERS[part]),
    ]

    def check_space(files: Sequence[Any]) -> None:
        check_writable(cache, sum(file.file_size or 0 for file in files if file.will_download))

    fetch = shlex.join(["hf", "download", name, "--local-dir", name.rpartition("/")[2]])
    return download(
        name,
        f"no folder {name}, and Hugging Face does not give a model of that name",
        unreachable=(
            f"no folder {name} here, and Hugging Face can't be reached",
            f". Without network here: run `{fetch}` where there is one, copy that folder, and give it as the source",
        ),
        before=check_space,
        revision=options.revision,
        cache_dir=cache,
        allow_patterns=[*patterns, "scheduler/*"],
    )
