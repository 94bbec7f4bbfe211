"""What a decoding process does: one job in, one result out. Imports no more than it needs, for every process
pays for it.

Letters: t frames, h w pixels, c = 3 colours.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.media import Media
from cogvideox.data.order import uniform
from cogvideox.data.survey import reader_for
from cogvideox.data.timing import ClipSpec, ClipTooShortError, FrameChoice, Timestamps, frame_indices
from cogvideox.data.transforms import fit_to_bucket


@dataclass(frozen=True)
class ProbeJob:
    """Look at a file: what it says about itself."""

    media: Media


@dataclass(frozen=True)
class ReadJob:
    """Decode a clip; seed, epoch and sample id decide on its augmentation. window, cuts: see Sample."""

    media: Media
    sample_id: int
    seed: int
    epoch: int
    window: int = 0
    cuts: tuple[int, ...] = ()


Job = ProbeJob | ReadJob


@dataclass(frozen=True, eq=False)
class Clip:
    """Video uint8 [t, c, h, w], contiguous, and the name of the reader that read it."""

    video: Tensor
    reader: str


@dataclass(frozen=True)
class ReadDone:
    """A clip is in its memory; the name of the reader that read it."""

    reader: str


@dataclass(frozen=True)
class ClipDecoder:
    """Turns files into clips. Picklable, if its reader is. Image files are clips of one frame."""

    spec: ClipSpec
    reader: VideoReader

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """t, c, h, w of every clip."""
        return (self.spec.max_num_frames, 3, *self.spec.video_size)

    def run(self, job: Job) -> ClipInfo | Clip:
        """Do a job.

        Raises:
            DataError: the file can't be read.
        """
        return reader_for(job.media, self.reader).probe(job.media) if isinstance(job, ProbeJob) else self.read(job)

    def read(self, job: ReadJob) -> Clip:
        """Decode a clip. Raises: DataError, of which ClipTooShortError."""
        spec = self.spec
        start = uniform(job.seed, job.epoch, job.sample_id, "start") if spec.random_start else 0.0

        def choose(timestamps: Timestamps) -> FrameChoice:
            try:
                return frame_indices(timestamps, spec, start, job.window, job.cuts)
            except ClipTooShortError as error:
                raise ClipTooShortError(f"{job.media.label}: {error}") from None

        decoded = reader_for(job.media, self.reader).read(job.media, choose)
        return Clip(fit_to_bucket(decoded.frames, spec.video_size), decoded.reader)
