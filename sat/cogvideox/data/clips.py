"""What a decoding process does: one job in, one result out. Imports no more than it needs, for every process
pays for it.

Letters: t frames, h w pixels, c = 3 colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.images import read_image
from cogvideox.data.media import Media
from cogvideox.data.order import uniform
from cogvideox.data.rows import Batch, ClipBatch, Rows
from cogvideox.data.sample import Sample
from cogvideox.data.survey import reader_for
from cogvideox.data.timing import ClipSpec, ClipTooShortError, FrameChoice, Timestamps, frame_indices
from cogvideox.data.transforms import fit_to_bucket
from cogvideox.geometry import Bucket


@dataclass(frozen=True)
class ProbeJob:
    """Look at a file: what it says about itself."""

    media: Media


@dataclass(frozen=True)
class ReadJob:
    """Decode a clip at a bucket; seed, epoch and sample id decide on its augmentation.

    window, cuts, image: see Sample.
    """

    media: Media
    sample_id: int
    bucket: Bucket
    seed: int
    epoch: int
    window: int = 0
    cuts: tuple[int, ...] = ()
    image: Media | None = None


Job = ProbeJob | ReadJob


@dataclass(frozen=True)
class Field:
    """Shape and type of one thing that every row holds."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class RowRead:
    """What a row holds, contiguous, by the names of the fields, and who read it."""

    values: dict[str, Tensor]
    reader: str


@dataclass(frozen=True)
class ReadDone:
    """A row is in its memory; the name of the reader that read it."""

    reader: str


class JobRunner(Protocol):
    """Does the jobs of a pool. Picklable: decoding processes get a copy."""

    def run(self, job: Job) -> ClipInfo | RowRead:
        """Do a job. Raises: DataError."""


class SampleReader(JobRunner, Protocol):
    """How a sample becomes a row: decoded from its file, or read from a cache. Picklable: decoding processes get a
    copy."""

    @property
    def name(self) -> str:
        """Of the reader that is asked for; others may step in (RowRead.reader)."""

    @property
    def fallback(self) -> SampleReader | None:
        """What reads all rows of a batch of which this one can't read one (NotCachedError); None: that is an error."""

    def fields(self, bucket: Bucket) -> Mapping[str, Field]:
        """What a row of this bucket holds."""

    def job(self, sample: Sample, bucket: Bucket, seed: int, epoch: int) -> ReadJob:
        """What `run` has to know."""

    def batch(self, rows: Rows, values: Mapping[str, Tensor]) -> Batch:
        """Rows that are read, each field [b, ...]."""


@dataclass(frozen=True)
class ClipDecoder:
    """Turns files into clips. Picklable, if its reader is. Image files are clips of one frame.

    with_images: the samples' own first images are read too, for image-to-video; without one it is the first frame.
    """

    spec: ClipSpec
    reader: VideoReader
    with_images: bool = False

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def fallback(self) -> None:
        return None

    def fields(self, bucket: Bucket) -> Mapping[str, Field]:
        """The video, t c h w, and the first image, c h w."""
        size = (3, bucket.height, bucket.width)
        fields = {"video": Field((bucket.frames, *size), torch.uint8)}
        return {**fields, "image": Field(size, torch.uint8)} if self.with_images else fields

    def job(self, sample: Sample, bucket: Bucket, seed: int, epoch: int) -> ReadJob:
        image = sample.image if self.with_images else None
        return ReadJob(sample.media, sample.sample_id, bucket, seed, epoch, sample.window, sample.cuts, image)

    def batch(self, rows: Rows, values: Mapping[str, Tensor]) -> ClipBatch:
        return ClipBatch(rows, values["video"], values["image"] if self.with_images else values["video"][:, 0])

    def run(self, job: Job) -> ClipInfo | RowRead:
        """Do a job.

        Raises:
            DataError: the file can't be read.
        """
        return reader_for(job.media, self.reader).probe(job.media) if isinstance(job, ProbeJob) else self.read(job)

    def read(self, job: ReadJob) -> RowRead:
        """Decode a clip. Raises: DataError, of which ClipTooShortError."""
        spec = replace(self.spec, max_num_frames=job.bucket.frames)
        start = uniform(job.seed, job.epoch, job.sample_id, "start") if spec.random_start else 0.0

        def choose(timestamps: Timestamps) -> FrameChoice:
            try:
                return frame_indices(timestamps, spec, start, job.window, job.cuts)
            except ClipTooShortError as error:
                raise ClipTooShortError(f"{job.media.label}: {error}") from None

        decoded = reader_for(job.media, self.reader).read(job.media, choose)
        size = (job.bucket.height, job.bucket.width)
        video = fit_to_bucket(decoded.frames, size)
        if not self.with_images:
            return RowRead({"video": video}, decoded.reader)
        image = video[0] if job.image is None else fit_to_bucket(read_image(job.image)[None], size)[0]
        return RowRead({"video": video, "image": image}, decoded.reader)
