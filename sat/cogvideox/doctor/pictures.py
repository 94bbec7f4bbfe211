"""A few small pictures of every clip, and what they say about it. They are remembered between runs.

Letters: k pictures of a clip, h w pixels, c = 3 colours.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from cogvideox.data.clips import Job, ReadJob, RowRead
from cogvideox.data.decode import ClipInfo, VideoReader
from cogvideox.data.file_memory import FileMemory, memory_file
from cogvideox.data.media import Media
from cogvideox.data.pool import DecodePool, Task, open_pool
from cogvideox.data.survey import Failure, reader_for
from cogvideox.data.timing import FrameChoice, Timestamps, average_fps
from cogvideox.geometry import Bucket

VERSION = 2  # of what is remembered
COUNT = 4  # k
SPAN_S = 10.0  # of the clip, over which they are spread
SIDE = 144  # of the picture that is shown, its longer one
_SMALL_SIDE, _GRID, _HASH = 32, 8, 8
_MOST_JPEG = 16_384
_FIGURES = ("brightness", "contrast", "motion")
_SMALL = 50  # clips for which starting processes isn't worth it
_AT_A_TIME = 10_000
_REMEMBER_EVERY_S = 20.0
_BUCKET = Bucket(1, 1, 1)  # a job has one


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a few frames of a clip show.

    Args:
        jpeg: the second one, small.
        colours: uint8 [k, 8, 8, c], squeezed.
        hash: uint8 [k, 8], a bit for each of 8 x 8 places: whether its right neighbour is brighter, going round.
        brightness: 0 to 255, of the brightest one; contrast: standard deviation, of the one with most.
        motion: mean difference of two that follow each other, 0 to 255, the largest.
    """

    jpeg: bytes
    colours: NDArray[np.uint8]
    hash: NDArray[np.uint8]
    brightness: float
    contrast: float
    motion: float

    @classmethod
    def of(cls, frames: NDArray[np.uint8]) -> Pictures:
        """frames: uint8 [k, h, w, c]."""
        images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
        small = np.stack([np.asarray(image.resize((_SMALL_SIDE,) * 2, Image.Resampling.BOX)) for image in images])
        grey = small.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
        steps = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))
        squeezed = _squeezed(grey)
        return cls(
            jpeg=_jpeg(images[min(1, len(images) - 1)]),
            colours=np.rint(_squeezed(small)).astype(np.uint8),
            hash=np.packbits(np.roll(squeezed, -1, axis=2) > squeezed + 0.5, axis=2)[..., 0],
            brightness=float(grey.mean(axis=(1, 2)).max()),
            contrast=float(grey.std(axis=(1, 2)).max()),
            motion=float(steps.max()) if len(steps) else 0.0,
        )


def _squeezed(pictures: NDArray[Any]) -> NDArray[np.float32]:
    """[k, 32, 32, ...] to [k, 8, 8, ...] by averaging."""
    each = _SMALL_SIDE // _GRID
    shape = (len(pictures), _GRID, each, _GRID, each, *pictures.shape[3:])
    return pictures.reshape(shape).astype(np.float32).mean(axis=(2, 4))


def _jpeg(image: Image.Image) -> bytes:
    image = image.copy()
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    for quality in (60, 40, 20):
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=quality)
        if sink.tell() <= _MOST_JPEG:
            break
    return sink.getvalue()


@dataclass(frozen=True)
class PictureTaker:
    """What a decoding process does for the page. Picklable, if its reader is."""

    reader: VideoReader

    def run(self, job: Job) -> ClipInfo | RowRead:
        """Decode k frames. Raises: DataError."""
        decoded = reader_for(job.media, self.reader).read(job.media, spread_out)
        pictures = Pictures.of(decoded.frames)
        jpeg = np.zeros(_MOST_JPEG, np.uint8)
        jpeg[: len(pictures.jpeg)] = np.frombuffer(pictures.jpeg, np.uint8)
        values = {
            "jpeg": torch.from_numpy(jpeg),
            "num_bytes": torch.tensor([len(pictures.jpeg)]),
            "colours": _of_each(pictures.colours),
            "hash": _of_each(pictures.hash),
            "figures": torch.tensor([getattr(pictures, name) for name in _FIGURES]),
        }
        return RowRead(values, decoded.reader)


def _of_each(values: NDArray[np.uint8]) -> torch.Tensor:
    """[k or 1, ...] to [k, ...]: an image is read as one frame, which stands for all."""
    return torch.from_numpy(np.broadcast_to(values, (COUNT, *values.shape[1:])).copy())


def spread_out(timestamps: Timestamps) -> FrameChoice:
    """k frames of the first seconds, from the first to the last one."""
    last = int(np.searchsorted(timestamps, SPAN_S, side="right")) - 1
    return FrameChoice(np.rint(np.linspace(0, last, COUNT)).astype(np.int64), average_fps(timestamps), 0, 0)


def _memory() -> dict[str, torch.Tensor]:
    return {
        "jpeg": torch.empty(_MOST_JPEG, dtype=torch.uint8),
        "num_bytes": torch.empty(1, dtype=torch.int64),
        "colours": torch.empty(COUNT, _GRID, _GRID, 3, dtype=torch.uint8),
        "hash": torch.empty(COUNT, _HASH, dtype=torch.uint8),
        "figures": torch.empty(len(_FIGURES)),
    }


def _of_row(values: dict[str, torch.Tensor]) -> Pictures:
    jpeg = values["jpeg"].numpy()[: int(values["num_bytes"])].tobytes()
    return Pictures(jpeg, values["colours"].numpy(), values["hash"].numpy(), *values["figures"].tolist())


def take_pictures(
    medias: Sequence[Media], reader: VideoReader, *, cache: str | None, num_workers: int, timeout_s: float
) -> Iterator[tuple[Media, Pictures | Failure]]:
    """Pictures of each file, remembered or new, in any order. Decoding happens in processes, each file within its time.

    Args:
        medias: files that can be read, each once.
        cache: see listing.find_samples.
        num_workers: processes; 0, or few files: none.
    """
    memory = FileMemory(
        memory_file("pictures.sqlite3", cache), f"{reader.name}, pictures {VERSION}", _to_row, _from_row
    )
    unknown: list[Media] = []
    for first in range(0, len(medias), _AT_A_TIME):
        some = medias[first : first + _AT_A_TIME]
        known = memory.get(some)
        for media in some:
            pictures = known.get(media)
            if pictures is None:
                unknown.append(media)
            else:
                yield media, pictures
    if not unknown:
        return
    found: dict[Media, Pictures] = {}
    since = time.monotonic()
    pool = open_pool(PictureTaker(reader), num_workers if len(unknown) > _SMALL else 0, timeout_s)
    try:
        for media, result in tqdm(_results(pool, unknown), "pictures", len(unknown), unit="clip", disable=None):
            yield media, result
            if isinstance(result, Pictures):
                found[media] = result
            if time.monotonic() - since > _REMEMBER_EVERY_S:
                memory.put(found)
                found, since = {}, time.monotonic()
    finally:  # also when it is interrupted
        pool.close()
        memory.put(found)


def _results(pool: DecodePool, medias: Sequence[Media]) -> Iterator[tuple[Media, Pictures | Failure]]:
    rows: dict[Media, dict[str, torch.Tensor]] = {}
    waiting = iter(medias)
    for done in range(len(medias)):
        while len(rows) < min(256, len(medias) - done) and (media := next(waiting, None)) is not None:
            rows[media] = _memory()
            pool.submit(Task(media, ReadJob(media, 0, _BUCKET, 0, 0), rows[media]))
        result = pool.next_result()
        assert result is not None, "the pool was closed while taking pictures"
        key, outcome = result
        assert isinstance(key, Media), key
        row = rows.pop(key)
        yield key, outcome if isinstance(outcome, Failure) else _of_row(row)


def _to_row(pictures: Pictures) -> tuple[str, bytes]:
    figures = {name: getattr(pictures, name) for name in _FIGURES}
    return json.dumps(figures), pictures.colours.tobytes() + pictures.hash.tobytes() + pictures.jpeg


def _from_row(text: str, content: bytes) -> Pictures:
    """Raises: ValueError or TypeError for a damaged row."""
    num_colours, num_hash = COUNT * _GRID * _GRID * 3, COUNT * _HASH
    colours = np.frombuffer(content[:num_colours], np.uint8).reshape(COUNT, _GRID, _GRID, 3)
    bits = np.frombuffer(content[num_colours : num_colours + num_hash], np.uint8).reshape(COUNT, _HASH)
    figures = json.loads(text)
    if set(figures) != set(_FIGURES):
        raise ValueError(f"holds {sorted(figures)}")
    return Pictures(content[num_colours + num_hash :], colours, bits, **figures)
