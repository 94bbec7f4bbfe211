"""The demo's text side: a hand-made Unigram vocabulary and a tiny T5 encoder.

Every word of the demo's captions is one piece; common English words and letter groups are pieces too, and
single characters make every other word representable, so that a word that training never saw still has
its own sequence of pieces.
"""

from __future__ import annotations

import random
import string
from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from .captions import FORMS, MOTION_PHRASES
from .render import BACKGROUNDS, COLORS, SHAPES

_HERE = Path(__file__).parent
TEXT_LENGTH = 32
TEXT_WIDTH = 128
COMMON_WORDS = _HERE.joinpath("words.txt").read_text(encoding="utf-8").split()
LETTER_GROUPS = _HERE.joinpath("letter_groups.txt").read_text(encoding="utf-8").split()


def build_tokenizer(word_score: float = -4.0) -> T5Tokenizer:
    """The tokenizer; vocabulary order and scores are fixed by this file.

    With a very low `word_score` the ids are the same, but every word is spelt in letters and letter groups.
    """
    sentence_words: set[str] = {*COLORS, *BACKGROUNDS, *SHAPES}
    for sentence in (*FORMS, *(phrase for phrases in MOTION_PHRASES.values() for phrase in phrases)):
        sentence_words.update(w.strip(",") for w in sentence.split() if "{" not in w)
    words = sorted(sentence_words) + sorted(set(COMMON_WORDS) - sentence_words)
    characters = string.ascii_letters + string.digits + string.punctuation + "àáâäçèéêëíïñóôöùúûüß"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", word_score) for word in words]
    pieces += [(group, -9.0) for group in dict.fromkeys(LETTER_GROUPS)]
    pieces += [(character, -8.0) for character in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def build_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A randomly initialised encoder, fp32; seed torch before."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def save_text_model(encoder: T5EncoderModel, tokenizer: T5Tokenizer, folder: Path) -> None:
    """Write the Hugging Face folder (config, safetensors, tokenizer files)."""
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class CaptionIds:
    """Captions to padded ids [l], sometimes spelling a word in letters and letter groups.

    The spelt words train the embeddings of the short pieces, so that a new word, which is always spelt,
    is not a sequence of untrained vectors.
    """

    def __init__(self, spell_share: float):
        self.spell_share = spell_share
        self.whole, self.spelt = build_tokenizer(), build_tokenizer(word_score=-1e4)
        self.word_ids: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, captions: list[str], rng: random.Random) -> torch.Tensor:
        """Ids int64 [b, l]."""
        rows = torch.zeros(len(captions), TEXT_LENGTH, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = [piece for word in caption.split() for piece in self._word(word, rng)]
            ids = [*ids[: TEXT_LENGTH - 1], 1]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def _word(self, word: str, rng: random.Random) -> list[int]:
        key = (word, rng.random() < self.spell_share)
        if key not in self.word_ids:
            tokenizer = self.spelt if key[1] else self.whole
            self.word_ids[key] = tokenizer(word, add_special_tokens=False).input_ids
        return self.word_ids[key]
