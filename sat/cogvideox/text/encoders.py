"""The T5 text encoder. Letters: b batch, l text tokens (always max_length), e text width.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer".
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.log import get_logger

logger = get_logger(__name__)

_WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError)


class T5Encoder(nn.Module):
    """Frozen T5 encoder: captions -> last hidden state, padded to max_length, without an attention mask.

    model_dir: a folder with config.json, weights and tokenizer files (tokenizer.json or spiece.model)
    together,
        or a pipeline folder with text_encoder/ and tokenizer/, or a Hugging Face id such as
        google/t5-v1_1-xxl, the only case that uses the network.
    max_length: tokens per caption; 226 for the 1.0 models, 224 for 1.5. Longer captions are cut.
    cache_dir: where an id is downloaded to; the default of transformers when None.

    Raises: ConfigError for max_length < 1; CheckpointError when the folder, a file or a weight is missing or
    broken.
    """

    def __init__(self, model_dir: str, max_length: int = 226, cache_dir: str | None = None) -> None:
        super().__init__()
        if max_length < 1:
            raise ConfigError(f"T5 encoder: max_length is {max_length}, must be at least 1 (226 for 1.0, 224 for 1.5)")
        self.model_dir = model_dir
        self.max_length = max_length
        weights, vocabulary = _locate(model_dir)
        self.tokenizer = _load_tokenizer(vocabulary, cache_dir)
        self.transformer = _load_transformer(weights, cache_dir)
        self.requires_grad_(False)
        self.eval()

    @property
    def width(self) -> int:
        """e, the width of the context."""
        return int(self.transformer.config.d_model)

    def train(self, mode: bool = True) -> T5Encoder:
        """Frozen: dropout stays off whatever the surrounding module does."""
        return super().train(False)

    def move(self, device: torch.device | str, dtype: torch.dtype) -> T5Encoder:
        """Move and cast. In fp16 the second MLP matrix stays fp32: its output leaves the range of fp16 at XXL
        size."""
        for name, parameter in self.named_parameters():
            keep = dtype == torch.float16 and ".wo." in name
            parameter.data = parameter.data.to(device, torch.float32 if keep else dtype)
        return self

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids int64 [b, l] on the CPU."""
        tokens = self.tokenizer(
            list(captions),
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        return tokens["input_ids"]

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before cutting, the end token included."""
        return [len(ids) for ids in self.tokenizer(list(captions), truncation=False)["input_ids"]]

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """captions (b of them) -> context [b, l, e] in the encoder's dtype, on its device."""
        device = self.transformer.get_input_embeddings().weight.device
        tokens = self.tokenize(captions).to(device, non_blocking=True)
        return self.transformer(input_ids=tokens).last_hidden_state


def _locate(model_dir: str) -> tuple[str, str]:
    """Where the weights and the tokenizer are: checked folders, or the id twice."""
    folder = Path(os.path.expanduser(model_dir))
    if not folder.exists():
        if _looks_like_id(model_dir):
            return model_dir, model_dir
        raise CheckpointError(
            f"T5 encoder: no folder {folder} (model_dir); it must hold config.json, weights and tokenizer "
            "files of a T5 model, or be a Hugging Face id such as google/t5-v1_1-xxl"
        )
    if not folder.is_dir():
        raise CheckpointError(f"T5 encoder: {folder} is a file, a folder is needed (model_dir)")
    pipeline = (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()
    weights, vocabulary = (folder / "text_encoder", folder / "tokenizer") if pipeline else (folder, folder)
    _check_files(weights, vocabulary)
    return str(weights), str(vocabulary)


def _looks_like_id(name: str) -> bool:
    """`owner/model`, with no folder called `owner` here: then a misspelt folder is likelier than an id."""
    owner, _, model = name.partition("/")
    plain = bool(owner) and bool(model) and "/" not in model and not owner.startswith((".", "~"))
    return plain and not Path(owner).exists()


def _check_files(weights: Path, vocabulary: Path) -> None:
    missing = []
    if not (weights / "config.json").is_file():
        missing.append(f"{weights / 'config.json'}")
    if not any(any(weights.glob(pattern)) for pattern in _WEIGHT_PATTERNS):
        missing.append(f"weights in {weights} ({' or '.join(_WEIGHT_PATTERNS)})")
    if not any((vocabulary / name).is_file() for name in _TOKENIZER_FILES):
        missing.append(f"a tokenizer in {vocabulary} ({' or '.join(_TOKENIZER_FILES)})")
    if missing:
        raise CheckpointError(f"T5 encoder: missing {'; '.join(missing)}")
    try:
        family = json.loads((weights / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"T5 encoder: can't read {weights / 'config.json'}: {error}") from error
    if family != "t5":
        raise CheckpointError(f"T5 encoder: {weights} holds a {family!r} model, a 't5' model is needed")


# transformers is imported where it is used: it costs seconds, which a config check must not pay.


def _load_tokenizer(source: str, cache_dir: str | None) -> Any:
    from transformers import AutoTokenizer, T5Tokenizer

    # Without one of these files nothing says which class it is; a lone spiece.model is T5's.
    named = not os.path.isdir(source) or any(
        os.path.isfile(os.path.join(source, name)) for name in ("config.json", "tokenizer_config.json")
    )
    kind: Any = AutoTokenizer if named else T5Tokenizer
    try:
        return kind.from_pretrained(source, cache_dir=cache_dir, local_files_only=os.path.isdir(source))
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"T5 encoder: can't load the tokenizer of {source}: {_first_line(error)}") from error


def _load_transformer(source: str, cache_dir: str | None) -> Any:
    from transformers import T5EncoderModel

    load: Any = T5EncoderModel.from_pretrained  # its annotation forgets the loading report
    try:
        model, report = load(
            source, cache_dir=cache_dir, local_files_only=os.path.isdir(source), output_loading_info=True
        )
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"T5 encoder: can't load the weights of {source}: {_first_line(error)}") from error
    # transformers fills missing weights with random numbers and goes on.
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"T5 encoder: {source} lacks weights: {', '.join(names[:3])}{more}")
    return model


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
