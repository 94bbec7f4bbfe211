"""The T5 text encoder. Letters: b batch, l text tokens (always max_length), e text width.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.log import amount, get_logger
from cogvideox.user_files import shown_path
from cogvideox.weights.text_encoder_folder import TextEncoderFiles, text_encoder_files

_log = get_logger(__name__)

_WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_SMALL_FILES = ("*.json", "spiece.model")
_LONGEST_ID = 96  # characters, of Hugging Face
_MOST_TOKENS = 2**20  # of a tokenizer whose encoder isn't there to say
_TABLE, _TABLE_AGAIN = "shared.weight", "encoder.embed_tokens.weight"


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
        files = find_encoder(model_dir, cache_dir)
        try:
            self.tokenizer = _load_tokenizer(files.tokenizer_folder, files.settings["vocab_size"])
            self.transformer = _load_transformer(files)
        except CheckpointError as error:
            raise CheckpointError(f"T5 encoder: {error}") from error
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


def find_encoder(model_dir: str, cache_dir: str | None = None) -> TextEncoderFiles:
    """The files of a T5 encoder; of its weights only names and shapes are read. See T5Encoder.

    Raises: CheckpointError.
    """
    folder = _locate(model_dir, cache_dir)
    try:
        return text_encoder_files(folder)
    except CheckpointError as error:
        raise CheckpointError(f"T5 encoder: {error}") from error


def _locate(model_dir: str, cache_dir: str | None) -> Path:
    """The folder that model_dir means; of a Hugging Face id, the one it was downloaded to."""
    folder = Path(os.path.expanduser(model_dir))
    if not os.path.exists(folder):
        if _looks_like_id(model_dir):
            return _download(model_dir, cache_dir)
        raise CheckpointError(
            f"T5 encoder: no folder {shown_path(folder)} (model_dir); it must hold config.json, weights and tokenizer "
            "files of a T5 model, or be a Hugging Face id such as google/t5-v1_1-xxl"
        )
    if not folder.is_dir():
        raise CheckpointError(f"T5 encoder: {folder} is a file, a folder is needed (model_dir)")
    return folder


def _looks_like_id(name: str) -> bool:
    """`owner/model`, with no folder called `owner` here: then a misspelt folder is likelier than an id."""
    owner, _, model = name.partition("/")
    plain = bool(owner) and bool(model) and "/" not in model and not owner.startswith((".", "~"))
    return plain and len(name) <= _LONGEST_ID and not os.path.exists(owner)


def _download(name: str, cache_dir: str | None) -> Path:
    """Weights as pickles are fetched only where there are no others."""
    from huggingface_hub import errors, snapshot_download

    # Its HTTP library has been requests, httpx and httpx2; the base of its own HTTP error is that library's error.
    kinds: Any = (*errors.HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        for weights in _WEIGHT_PATTERNS:
            folder = Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=[*_SMALL_FILES, weights]))
            if any(folder.glob(weights)):
                return folder
    except kinds as error:
        raise CheckpointError(
            f"T5 encoder: no folder {name} (model_dir), and Hugging Face does not give a model of that name "
            f"({_first_line(error)})"
        ) from error
    return folder


def open_tokenizer(model_dir: str) -> Callable[[Sequence[str]], list[int]]:
    """What gives the tokens of each caption before cutting, the end token included, without any weights.

    model_dir: a folder with tokenizer files, or with tokenizer/ inside; nothing is downloaded.
    Raises: CheckpointError when there is none, or it is damaged.
    """
    folder = Path(os.path.expanduser(model_dir))
    inside = folder / "tokenizer"
    place = inside if inside.is_dir() else folder
    if not any((place / name).is_file() for name in ("spiece.model", "tokenizer.json")):
        raise CheckpointError(f"{place} holds no T5 tokenizer: it needs spiece.model or tokenizer.json")
    tokenizer = _load_tokenizer(place, _MOST_TOKENS)
    return lambda captions: [len(ids) for ids in tokenizer(list(captions), truncation=False)["input_ids"]]


# transformers is imported where it is used: it costs seconds, which a config check must not pay.


def _load_tokenizer(folder: Path, vocab_size: int) -> Any:
    from transformers import AutoTokenizer, T5Config, T5Tokenizer

    _quiet_transformers()

    # Without one of these files nothing says which class it is; a lone spiece.model is T5's.
    named = any((folder / name).is_file() for name in ("config.json", "tokenizer_config.json"))
    kind: Any = AutoTokenizer if named else T5Tokenizer
    try:
        # With a configuration at hand it doesn't read the folder's.
        options = {"local_files_only": True, "trust_remote_code": False, "config": T5Config()}
        tokenizer = kind.from_pretrained(str(folder), **options)
        trial = tokenizer(["a"], truncation=True, max_length=2, padding="max_length", return_tensors="pt")["input_ids"]
        largest = max(tokenizer.get_vocab().values())
    except Exception as error:  # of a damaged file the library in Rust raises the bare Exception, and no other kind
        raise CheckpointError(f"can't load the tokenizer of {folder}: {_first_line(error)}") from error
    if trial.shape != (1, 2) or largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder} has tokens up to {largest}, the encoder knows {vocab_size}: "
            "take both from one model"
        )
    return tokenizer


def _load_transformer(files: TextEncoderFiles) -> Any:
    """Built from its sizes on no device, then given the stored tensors, which stay memory-mapped."""
    from transformers import T5Config, T5EncoderModel

    _quiet_transformers()
    _log.info("loading the text encoder from %s (%s)", files.folder, amount(files.num_bytes()))
    state = _encoder_tensors(files.read())
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**files.settings, dropout_rate=0.0))
    expected = {name: value.shape for name, value in model.state_dict().items()}
    _check_tensors(state, expected, files.folder)
    model.load_state_dict(state, assign=True)
    model.set_input_embeddings(model.shared)  # one table, as in the file
    return model


def _encoder_tensors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without a decoder, and with the table of tokens under both of its names."""
    state = {name: value for name, value in stored.items() if name.startswith("encoder.")}
    table = stored.get(_TABLE, stored.get(_TABLE_AGAIN))
    return state if table is None else {**state, _TABLE: table, _TABLE_AGAIN: table}


def _check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], folder: Path) -> None:
    """Raises: CheckpointError for weights that are missing, too many, of another shape, or integers."""
    for what, names in (
        ("lacks weights", expected.keys() - state.keys()),
        ("holds weights for which its config.json has no place", state.keys() - expected.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(f"{folder} {what}: {shown}")
    for name, value in state.items():
        if value.shape != expected[name] or not value.is_floating_point():
            raise CheckpointError(
                f"{folder}: {name} is {value.dtype} {list(value.shape)}; its config.json says {list(expected[name])}"
            )


def _quiet_transformers() -> None:
    """No bars; its messages go where all messages go, instead of to stderr."""
    from transformers.utils import logging as their_logging

    their_logging.disable_progress_bar()
    their_logging.disable_default_handler()
    their_logging.enable_propagation()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
