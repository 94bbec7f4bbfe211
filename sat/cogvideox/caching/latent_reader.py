"""How a sample becomes a row where its latents are stored. Runs in the decoding processes, so it imports little.

Letters: f latent frames, z latent channels, y x latent height and width; c = 3 colours, h w pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from cogvideox.caching.entries import read_entry
from cogvideox.caching.keys import Recipe, latent_key
from cogvideox.caching.layout import FIRST_FRAME, LatentLayout
from cogvideox.caching.media_hashes import MediaHashes
from cogvideox.data.clips import ClipDecoder, Field, Job, ReadJob, RowRead
from cogvideox.data.decode import ClipInfo
from cogvideox.data.rows import Batch, LatentBatch, Rows
from cogvideox.data.sample import Sample
from cogvideox.data.survey import NotCachedError
from cogvideox.data.timing import ClipTooShortError
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket

FAILED = ".failed"  # beside an entry's place: why there is none


@dataclass(frozen=True)
class StoredJob(ReadJob):
    """Read a clip's latents. Its epoch is the view."""


@dataclass(frozen=True)
class Place:
    """Where an entry is."""

    key: str
    file: Path

    @property
    def failed(self) -> Path:
        """The file that says why it could not be made."""
        return self.file.with_suffix(FAILED)


@dataclass(frozen=True)
class LatentReader:
    """Reads latents from a cache.

    Args:
        root: the cache folder.
        recipe: how its latents were made.
        decoder: reads the clips that they were made of; also the rows that are not stored, where `online`.
        layout: what an entry holds.
        views: random starts of each clip that are stored; epoch n meets view n modulo views.
        online: whether a batch with a row that isn't stored is decoded; else that is an error.
        how_to_fill: the command that fills the cache, for messages.
    """

    root: str
    recipe: Recipe
    decoder: ClipDecoder
    layout: LatentLayout
    views: int = 1
    online: bool = False
    how_to_fill: str = ""

    @property
    def name(self) -> str:
        return "cache"

    @property
    def fallback(self) -> ClipDecoder | None:
        """What reads all rows of a batch of which one is not stored."""
        return self.decoder if self.online else None

    def fields(self, bucket: Bucket) -> Mapping[str, Field]:
        """What an entry holds, moments in float32."""
        return {
            name: Field(shape, torch.uint8 if name == FIRST_FRAME else torch.float32)
            for name, shape in self.layout.shapes(bucket).items()
        }

    def job(self, sample: Sample, bucket: Bucket, seed: int, epoch: int) -> StoredJob:
        job = self.decoder.job(sample, bucket, seed, epoch % self.views if self.decoder.spec.varies else 0)
        return StoredJob(**{field.name: getattr(job, field.name) for field in fields(job)})

    def run(self, job: Job) -> ClipInfo | RowRead:
        """Do a job. Raises: DataError, of which NotCachedError."""
        return self.read(job) if isinstance(job, StoredJob) else self.decoder.run(job)

    def batch(self, rows: Rows, values: Mapping[str, Tensor]) -> Batch:
        return LatentBatch(rows, values["mean"], values["log_variance"], values.get(FIRST_FRAME))

    def place(self, job: ReadJob) -> Place:
        """Where a clip's latents are, or would be. Raises: DataError for a clip that can't be read."""
        key = latent_key(self.recipe, self.decoder, job, MediaHashes(self.root).of)
        return Place(key, self.recipe.entry(self.root, key))

    def read(self, job: ReadJob) -> RowRead:
        """What is stored. Raises: DataError, of which NotCachedError."""
        place = self.place(job)
        try:
            entry = read_entry(place.file, place.key)
        except NotCachedError:
            if (failure := failure_of(place)) is not None:
                raise failure from None
            text = f"{job.media.label}: its latents are not in the cache {self.root}; {self.how_to_fill}"
            raise NotCachedError(text) from None
        wanted = self.fields(job.bucket)
        values = {name: value if name == FIRST_FRAME else value.float() for name, value in entry.tensors.items()}
        wrong = [name for name, field in wanted.items() if name not in values or values[name].shape != field.shape]
        if wrong or entry.facts.get("bucket") != str(job.bucket):
            raise DataError(f"{place.file}: holds {entry.facts.get('bucket')}, not {job.bucket}; fill the cache again")
        return RowRead({name: values[name].contiguous() for name in wanted}, self.name)


def write_failed(place: Place, reason: str, *, too_short: bool) -> None:
    """Remember why a clip has no latents. Raises: OSError."""
    place.failed.parent.mkdir(parents=True, exist_ok=True)
    found = {"key": place.key, "reason": reason, "too_short": too_short}
    place.failed.write_text(json.dumps(found), encoding="utf-8")


def failure_of(place: Place) -> DataError | None:
    """The error that the clip gave when the cache was filled, if it gave one. A file of another clip says nothing."""
    try:
        found = json.loads(place.failed.read_text(encoding="utf-8"))
        key, reason, too_short = found["key"], str(found["reason"]), bool(found["too_short"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if key != place.key:
        return None
    return (ClipTooShortError if too_short else DataError)(reason)
