"""What a decoding process does: one job in, one result out. Imports no more than it needs, for every process
pays for it.

Letters: t frames, h w pixels, c = 3 colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cogvideox.data.decode import VideoReader
from cogvideox.data.images import ImageReader, is_image
from cogvideox.data.order import uniform
from cogvideox.data.timing import ClipSpec, ClipTooShortError, FrameChoice, Timestamps, frame_indices
from cogvideox.data.transforms import fit_to_bucket


@dataclass(frozen=True)
class SurveyJob:
    """Look at a file without decoding it."""

    path: str


@dataclass(frozen=True)
class ReadJob:
    """Decode a clip; seed, epoch and sample id decide on its augmentation."""

    path: str
    sample_id: int
    seed: int
    epoch: int


Job = SurveyJob | ReadJob


@dataclass(frozen=True)
class Survey:
    """What a file will give.

    Args:
        source_fps, effective_fps: frames per second of the file, and of the result against the file's clock.
        width, height: pixels as shown.
        num_repeated, num_padded: see FrameChoice.
        too_short: why the clip is too short, or None.
    """

    source_fps: float
    effective_fps: float
    width: int
    height: int
    num_repeated: int
    num_padded: int
    too_short: str | None


@dataclass(frozen=True, eq=False)
class Clip:
    """Video uint8 [t, c, h, w], contiguous, and the name of the reader that read it."""

    video: Tensor
    reader: str


@dataclass(frozen=True)
class Failure:
    """A job without a result, and why."""

    reason: str


@dataclass(frozen=True)
class ClipDecoder:
    """Turns files into clips. Picklable, if its reader is.

    Image files are clips of one frame, from which skip_frms_num drops nothing; they have a reader of their own.
    """

    spec: ClipSpec
    reader: VideoReader

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """t, c, h, w of every clip."""
        return (self.spec.max_num_frames, 3, *self.spec.video_size)

    def run(self, job: Job) -> Survey | Clip:
        """Do a job.

        Raises:
            DataError: the file can't be read.
        """
        return self.survey(job.path) if isinstance(job, SurveyJob) else self.read(job)

    def survey(self, path: str) -> Survey:
        reader, spec = self._for(path)
        info = reader.probe(path)
        try:
            choice = frame_indices(info.timestamps, spec)
        except ClipTooShortError as error:
            return Survey(info.fps, 0.0, info.width, info.height, 0, 0, str(error))
        return Survey(
            info.fps,
            choice.effective_fps,
            info.width,
            info.height,
            choice.num_repeated,
            choice.num_padded,
            None,
        )

    def read(self, job: ReadJob) -> Clip:
        reader, spec = self._for(job.path)
        start = uniform(job.seed, job.epoch, job.sample_id, "start") if spec.random_start else 0.0

        def choose(timestamps: Timestamps) -> FrameChoice:
            try:
                return frame_indices(timestamps, spec, start)
            except ClipTooShortError as error:
                raise ClipTooShortError(f"{job.path}: {error}") from None

        decoded = reader.read(job.path, choose)
        return Clip(fit_to_bucket(decoded.frames, spec.video_size), decoded.reader)

    def _for(self, path: str) -> tuple[VideoReader, ClipSpec]:
        if is_image(path):
            return ImageReader(), replace(self.spec, skip_frms_num=0.0)
        return self.reader, self.spec
