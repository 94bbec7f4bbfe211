"""The files that building and loading a model reads, so that they can be checked while that happens."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from cogvideox.config.schema import ModelConfig
from cogvideox.errors import CheckpointError
from cogvideox.vae.autoencoder import DIFFUSERS_FILE
from cogvideox.weights.key_rules import shorten
from cogvideox.weights.model_folder import weight_map
from cogvideox.weights.safetensors_stream import FLOATS
from cogvideox.weights.sat_folder import VAE_FILE, find_states_file
from cogvideox.weights.torch_file import load_file, named_tensors


def model_files(
    config: ModelConfig, load: str | Path | None, *, with_vae: bool = True, with_text_encoder: bool = True
) -> list[Path]:
    """Weights, and what lies beside those of the text encoder. load: the transformer's checkpoint, if there is one.

    A base that a checkpoint names is not among them: loading compares it with the hash that the checkpoint recorded.
    Raises: CheckpointError for a checkpoint or an index of shards that is missing or damaged.
    """
    found = [] if load is None else [find_states_file(load)]
    found += vae_files(config) if with_vae else []
    return [*found, *(_text_encoder_files(config) if with_text_encoder else [])]


def check_text_encoder(config: ModelConfig) -> None:
    """Names and types of the text encoder's weights; transformers casts what is stored otherwise without a word.

    Raises: CheckpointError for weights that are no plain floats.
    """
    for file in _text_encoder_files(config):
        if file.suffix != ".safetensors" and not (file.suffix == ".bin" and zipfile.is_zipfile(file)):
            continue
        kinds = {name: value.dtype for name, value in named_tensors(load_file(file)) if name.endswith(".weight")}
        odd = [name for name, kind in kinds.items() if kind not in FLOATS]
        if odd:
            kind = str(kinds[odd[0]]).removeprefix("torch.")
            raise CheckpointError(
                f"{file} stores {len(odd)} weights of the text encoder as {kind}: {shorten(odd)}. That is a quantised "
                "file; take one in float32, float16 or bfloat16"
            )


def vae_files(config: ModelConfig) -> list[Path]:
    """The VAE's weights, none for one of random weights. Raises: CheckpointError."""
    name = config.first_stage_config["params"].get("ckpt_path")
    if name is None:
        return []
    folder = Path(name).expanduser()
    inside = next((folder / each for each in (DIFFUSERS_FILE, VAE_FILE) if (folder / each).is_file()), None)
    return [find_states_file(folder) if inside is None else inside]


def _text_encoder_files(config: ModelConfig) -> Iterator[Path]:
    """None for a model of the Hugging Face hub."""
    encoder = config.conditioner_config["params"].get("encoder") or {}
    name = encoder.get("params", {}).get("model_dir")
    if not name:
        return
    root = Path(name).expanduser()
    for folder in (root, root / "text_encoder", root / "tokenizer"):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.name.endswith(".index.json"):
                weight_map(file)  # transformers opens whatever it names
            if file.is_file():
                yield file
