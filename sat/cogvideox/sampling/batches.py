"""Which videos are sampled together, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cogvideox.config.schema import SampleArgs
from cogvideox.errors import ShapeError
from cogvideox.geometry import Geometry
from cogvideox.model.frame_padding import num_padded
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.sampling.jobs import SampleJob


@dataclass(frozen=True)
class VideoFormat:
    """What the videos of a batch look like: real latent frames (see model.frame_padding), pixels, frames per second;
    and which files are written."""

    num_latent_frames: int
    height: int
    width: int
    fps: float
    save_video: bool = True
    save_latent: bool = False


Batch = tuple[VideoFormat, Sequence[SampleJob]]  # jobs that are sampled together


def make_batches(jobs: Sequence[SampleJob], args: SampleArgs, patch_frames: int) -> list[Batch]:
    """Jobs of equal size together, `args.batch_size` at a time. A job without a size has the one of `args`."""
    by_size: dict[tuple[int, int], list[SampleJob]] = {}
    for job in jobs:
        size = job.size or args.sampling_image_size
        assert size is not None, "the configuration was checked: without a size in it each image gives one"
        by_size.setdefault(size, []).append(job)
    return [
        (video_format(args, size, patch_frames), group[start : start + args.batch_size])
        for size, group in by_size.items()
        for start in range(0, len(group), args.batch_size)
    ]


def video_format(args: SampleArgs, size: tuple[int, int], patch_frames: int) -> VideoFormat:
    """The format that `args` asks for. With patches of 2 latent frames (1.5), an even sampling_num_frames counts the
    padding: the published 22 are 21 latents, that is 81 frames."""
    frames = args.sampling_num_frames
    return VideoFormat(
        num_latent_frames=Geometry(patch_size=(patch_frames, 2, 2)).real_frames(frames),
        height=size[0],
        width=size[1],
        fps=args.sampling_fps,
        save_video=not args.only_save_latents,
        save_latent=args.save_latents or args.only_save_latents,
    )


def check_format(model: VideoDiffusion, form: VideoFormat) -> None:
    """Raises: ShapeError for a size or a frame count that does not divide into latents and patches, naming the
    nearest ones that do."""
    num_padded(form.num_latent_frames, model.patch_frames)
    problem = model.geometry.size_problem((form.height, form.width))
    if problem:
        raise ShapeError(f"the size of the video, [height, width], {problem}")
