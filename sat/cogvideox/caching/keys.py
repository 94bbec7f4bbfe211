"""What an entry of a cache is made of, and the key that this gives.

Nothing decides on an entry's bits that isn't in its key, so that whatever changes is a miss and never a wrong hit. The
device is not in it: a clip that was encoded on another one is the same clip within the rounding of its dtype.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.media import Media

VERSION = 1  # raise it when the same settings, files and weights give other bits than before
Kind = Literal["latents", "contexts"]
# What says which clip it is; its bytes say that better. Seed and epoch count where something is drawn from them.
_NAMES = ("media", "sample_id", "seed", "epoch")
_IN_BUCKET = ("video_size", "max_num_frames")


@dataclass(frozen=True)
class Recipe:
    """What all entries of one kind have in common.

    Args:
        kind: what is stored.
        facts: JSON object; everything that decides on an entry's bits, beside its clip or caption.
        weights: the file or folder that the weights came from, for messages.
    """

    kind: Kind
    facts: str
    weights: str

    @classmethod
    def of(cls, kind: Kind, weights: str, **facts: Any) -> Recipe:
        """Of facts that JSON can say."""
        return cls(kind, _text({"kind": kind, "version": VERSION, **facts}), weights)

    @property
    def name(self) -> str:
        """The folder of its entries."""
        return _hash(self.facts)[:16]

    def folder(self, root: str) -> Path:
        """Where its entries are in a cache."""
        return Path(root) / self.kind / self.name

    def entry(self, root: str, key: str) -> Path:
        """The file of an entry."""
        return self.folder(root) / key[:2] / f"{key}.safetensors"


def latent_key(recipe: Recipe, decoder: ClipDecoder, job: ReadJob, hash_of: Callable[[Media], str]) -> str:
    """Of the latents of a clip.

    Args:
        job: which frames, at which size; its epoch is the view where starts are drawn.
        hash_of: of the bytes of a file.

    Raises: DataError for a file that can't be read.
    """
    return _hash(_text([json.loads(recipe.facts), _choice(decoder, job, hash_of), hash_of(job.media)]))


def context_key(recipe: Recipe, caption: str) -> str:
    """Of the context of a caption."""
    return _hash(_text([json.loads(recipe.facts), caption]))


def _choice(decoder: ClipDecoder, job: ReadJob, hash_of: Callable[[Media], str]) -> dict[str, Any]:
    """Every setting of reading counts that isn't listed as one without influence, so that new ones can't be
    forgotten."""
    spec = {name: value for name, value in asdict(decoder.spec).items() if name not in _IN_BUCKET}
    if spec["short_clips"] in ("error", "skip"):  # both leave a short clip out
        spec["short_clips"] = "skip"
    given = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in _NAMES}
    return {
        "spec": spec,
        "job": {name: hash_of(value) if isinstance(value, Media) else value for name, value in given.items()},
        "reader": "image" if job.media.is_image else decoder.reader.name,
        "draw": [job.seed, job.epoch, job.sample_id] if decoder.spec.varies else None,
    }


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
