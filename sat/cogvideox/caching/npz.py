"""The layout of stored latents that other programs use: one .npz file a clip, in folders that mirror the videos'.

    <folder>/latent/<the video's path>.npz    latent_mean, latent_std: fp32 [f, z, y, x], unscaled; fps; ori_size (h, w)
    <folder>/text/<the video's path>.npz      text_emb: fp32 [l, e]

Letters: f latent frames, z latent channels, y x latent height and width; l text tokens, e text width.
Source: MindONE's opensora_hpcai, whose scripts write and read it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cogvideox import stopping
from cogvideox.caching.entries import cannot_write, read_entry, write_entry
from cogvideox.caching.layout import FIRST_FRAME
from cogvideox.caching.opening import Cache
from cogvideox.data.clips import ReadJob
from cogvideox.data.sample import Sample
from cogvideox.data.survey import NotCachedError, reader_for
from cogvideox.errors import DataError

Jobs = Iterable[tuple[Sample, ReadJob]]


@dataclass(frozen=True)
class Mirror:
    """Which .npz file belongs to which clip.

    Args:
        folder: of the .npz files.
        roots: the data sets' folders; a clip's path below one of them is kept.
    """

    folder: Path
    roots: tuple[Path, ...]

    def file(self, kind: str, sample: Sample) -> Path:
        """kind: "latent" or "text"."""
        media = sample.media
        path = Path(media.path).absolute()
        root = next((each for each in self.roots if path.is_relative_to(each)), path.parent)
        below = path.relative_to(root)
        if media.is_part:
            below = below.with_suffix("") / (media.name or str(media.offset))
        return (self.folder / kind / below).with_suffix(".npz")


def export_npz(cache: Cache, jobs: Jobs, mirror: Mirror) -> int:
    """Write what is stored of these clips and their first captions; how many clips.

    Raises: DataError for two clips with one name, a file that is there already, a full disk, a damaged entry; Stopped.
    """
    written: set[Path] = set()
    for sample, job in jobs:
        stopping.check()
        place, file = cache.latents.place(job), mirror.file("latent", sample)
        if file in written or file.exists():
            raise DataError(f"{file} is there already: export into a new folder, from clips with names of their own")
        try:
            kept = read_entry(place.file, place.key).tensors
        except NotCachedError:
            continue
        decoder = cache.latents.decoder
        info = reader_for(sample.media, decoder.reader).probe(sample.media)
        size = np.array([info.height, info.width])
        mean, std = kept["mean"].float(), torch.exp(0.5 * kept["log_variance"].float())
        _save(file, latent_mean=mean.numpy(), latent_std=std.numpy(), fps=decoder.spec.fps, ori_size=size)
        if not cache.contexts.missing(sample.captions[:1]):
            context = cache.contexts.read(sample.captions[0])
            _save(mirror.file("text", sample), text_emb=context.float().numpy())
        written.add(file)
    return len(written)


@dataclass(frozen=True)
class Found:
    """What a folder of .npz files holds for a clip. context: None where there is none."""

    sample: Sample
    job: ReadJob
    values: dict[str, Tensor]
    context: Tensor | None


def find_npz(cache: Cache, jobs: Jobs, mirror: Mirror) -> Iterator[Found]:
    """The clips for which there is a .npz file. Raises: DataError for one that doesn't fit the clip; Stopped."""
    for sample, job in jobs:
        stopping.check()
        file = mirror.file("latent", sample)
        if not file.is_file():
            continue
        loaded, shape = _load(file), cache.latents.fields(job.bucket)["mean"].shape
        missing = [name for name in ("latent_mean", "latent_std") if name not in loaded]
        if missing:
            raise DataError(f"{file}: has no {' and no '.join(missing)}; it holds {', '.join(loaded) or 'nothing'}")
        mean, std = (_ordered(file, name, loaded[name], shape) for name in ("latent_mean", "latent_std"))
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise DataError(f"{file}: latent_mean and latent_std have to be finite, latent_std above 0")
        text, context = mirror.file("text", sample), None
        if text.is_file():
            context = torch.from_numpy(np.asarray(_load(text).get("text_emb", np.zeros(0)), np.float32))
            if tuple(context.shape) != cache.contexts.shape:
                expected = list(cache.contexts.shape)
                raise DataError(f"{text}: text_emb is {list(context.shape)}, this model's is {expected}")
        yield Found(sample, job, {"mean": mean, "log_variance": 2 * std.log()}, context)


def store(cache: Cache, found: Found, first_frame: Tensor | None, dtype: torch.dtype) -> None:
    """Make entries of it, which say where they come from. first_frame: uint8 [3, h, w], for image-to-video; dtype: of
    contexts. Raises: DataError."""
    place = cache.latents.place(found.job)
    values = {**found.values, **({} if first_frame is None else {FIRST_FRAME: first_frame})}
    facts = {
        "key": place.key,
        "bucket": str(found.job.bucket),
        "sample_id": str(found.sample.sample_id),
        "source": found.sample.label.encode("utf-8", "backslashreplace").decode(),
        "imported": "npz",
    }
    write_entry(place.file, values, facts)
    caption = found.sample.captions[0]
    if found.context is not None and cache.contexts.missing([caption]):
        cache.contexts.write(caption, found.context.to(dtype))


def _ordered(file: Path, name: str, value: NDArray[Any], shape: Sequence[int]) -> Tensor:
    """As f z y x; some programs write z f y x."""
    frames, channels, height, width = shape
    if value.shape == (frames, channels, height, width):
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    if value.shape == (channels, frames, height, width):
        return torch.from_numpy(np.ascontiguousarray(value.transpose(1, 0, 2, 3), dtype=np.float32))
    raise DataError(f"{file}: {name} is {list(value.shape)}; frames, channels, height and width are {list(shape)} here")


def _load(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: is no .npz file that can be read: {str(error)[:160]}") from error


def _save(file: Path, **arrays: Any) -> None:
    beside = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as sink:
            np.savez(sink, **arrays)
        beside.replace(file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise cannot_write(file, error) from error
