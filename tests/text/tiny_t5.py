"""A tiny random T5 folder with a tokenizer that is trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import sentencepiece
import torch
from transformers import AutoTokenizer, T5Config, T5EncoderModel

WORDS = "a red green blue square circle triangle moves left right up down over the textured ground"
_PIECES = 32


def build_tiny_t5(folder: Path, width: int = 16, tokenizer: Literal["spiece", "fast"] = "spiece") -> Path:
    """`spiece`: only spiece.model, as old snapshots have; `fast`: only tokenizer.json and its configuration."""
    folder.mkdir(parents=True)
    text = folder / "corpus.txt"
    text.write_text("\n".join([WORDS] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spiece"),
        vocab_size=_PIECES,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    text.unlink()
    (folder / "spiece.vocab").unlink()
    config = T5Config(
        vocab_size=_PIECES + 100,  # and T5's sentinels
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    if tokenizer == "fast":
        AutoTokenizer.from_pretrained(_with_config(folder, config)).save_pretrained(folder)
        (folder / "spiece.model").unlink()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5EncoderModel(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def _with_config(folder: Path, config: T5Config) -> Path:
    config.save_pretrained(folder)
    return folder
