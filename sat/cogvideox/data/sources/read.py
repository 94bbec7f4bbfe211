"""From the entries of args.train_data to one manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogvideox.data.manifest import Manifest, ManifestWriter
from cogvideox.data.report import Problem, SourceInfo
from cogvideox.data.sample import CAPTION_CHOICES
from cogvideox.data.sources import (
    lines,
    pairs,
    saved,
    table_csv,
    table_json,
    table_parquet,
    videofolder,
    webdataset,
)
from cogvideox.data.sources.recognise import recognised
from cogvideox.data.sources.spec import MISSING_CAPTIONS, Reading, Rows, SourceSpec, Wanted
from cogvideox.errors import DataError

READERS: Mapping[str, Callable[[Reading], Iterator[Rows]]] = {
    "pairs": pairs.read,
    "csv": table_csv.read,
    "json": table_json.read,
    "parquet": table_parquet.read,
    "lines": lines.read,
    "videofolder": videofolder.read,
    "datasets": saved.read,
    "webdataset": webdataset.read,
}


@dataclass(frozen=True, eq=False)
class Listing:
    """What the entries hold, before any video is looked at.

    Args:
        samples: in order: entries as given, then as each one has them.
        problems: what is wrong with single items.
        sources: one for each entry.
        where_missing: for each entry, what to do when its files are missing.
    """

    samples: Manifest
    problems: tuple[Problem, ...]
    sources: tuple[SourceInfo, ...]
    where_missing: tuple[str, ...]

    @property
    def num_videos(self) -> int:
        """Videos found, images where they count, and those that can't be used."""
        return sum(source.num_videos for source in self.sources)


def read_sources(
    entries: Sequence[SourceSpec | str | Path],
    missing_captions: str = "error",
    *,
    captions: str = "first",
    with_images: bool = False,
) -> Listing:
    """Read every entry. Opens no video.

    Args:
        entries: a path stands for an entry whose layout is recognised.
        missing_captions, captions, with_images: see Wanted.

    Raises:
        DataError: no entries; an entry that can't be read, or is given twice; an unknown choice. Problems of single
            items are in the result instead.
    """
    if missing_captions not in MISSING_CAPTIONS:
        raise DataError(f"missing_captions is {missing_captions!r}; it has to be one of {', '.join(MISSING_CAPTIONS)}")
    if captions not in CAPTION_CHOICES:
        raise DataError(f"captions is {captions!r}; it has to be one of {', '.join(CAPTION_CHOICES)}")
    if not entries:
        raise DataError("no data is given; args.train_data has to name at least one folder or list")
    wanted, reached, listed = Wanted(missing_captions, captions, with_images), dict[str, Path](), set[SourceSpec]()
    readings, writer = list[Reading](), ManifestWriter()
    infos: list[SourceInfo] = []
    for number, entry in enumerate(entries):
        spec = recognised(entry if isinstance(entry, SourceSpec) else SourceSpec(str(entry)))
        assert spec.layout is not None
        _check_once(spec, listed)
        reading = Reading(spec, wanted, reached)
        for rows in READERS[spec.layout](reading):
            writer.add(number, rows)
        readings.append(reading)
        shown = str(entry.path if isinstance(entry, SourceSpec) else entry)
        infos.append(SourceInfo(shown, spec.layout, spec.repeats, 0, reading.num_videos))
    problems = tuple(problem for reading in readings for problem in reading.problems)
    return Listing(writer.finish(), problems, tuple(infos), tuple(map(_where_missing, readings)))


def _check_once(spec: SourceSpec, listed: set[SourceSpec]) -> None:
    """Folders of pairs are compared by what they hold; see pairs.read."""
    if spec.layout == "pairs":
        return
    key = replace(spec, path=os.path.realpath(spec.path), repeats=1.0, weight=None, caption_prefix="")
    if key in listed:
        raise DataError(
            f"data {spec.path} is given twice: its clips would count twice; repeats: 2 says so in one entry"
        )
    listed.add(key)


def _where_missing(reading: Reading) -> str:
    spec = reading.spec
    if reading.has_absolute:
        return (
            "paths are absolute, perhaps of another machine; say below which folder the clips are here: "
            f"{{path: {spec.path}, root: FOLDER}}"
        )
    if reading.base:
        return f"paths are relative to {reading.base}; another folder: {{path: {spec.path}, root: FOLDER}}"
    return ""


def settle_repeats(
    sources: Sequence[SourceInfo],
    entries: Sequence[SourceSpec | str | Path],
    num_samples: Sequence[int],
    *,
    is_whole: bool = True,
) -> tuple[SourceInfo, ...]:
    """The sources with how many samples they have and how often each comes in an epoch.

    Weights are shares of the mixture: an epoch is as long as all sources together, and a source of weight w among
    weights that sum to W has w / W of its samples.

    Args:
        num_samples: usable ones of each source.
        is_whole: whether all files were looked at; otherwise a source may be without samples for now.

    Raises:
        DataError: a source with a weight and no usable samples.
    """
    weights = [entry.weight if isinstance(entry, SourceSpec) else None for entry in entries]
    total, length = sum(filter(None, weights)), sum(num_samples)
    settled = []
    for source, weight, count in zip(sources, weights, num_samples, strict=True):
        repeats = source.repeats
        if weight is not None and (count or is_whole):
            if not count:
                raise DataError(f"{source.path}: has no usable samples, so that it can't have a weight; leave it out")
            repeats = weight / total * length / count
        settled.append(replace(source, num_samples=count, repeats=repeats))
    return tuple(settled)


def count_by_source(samples: Manifest, num_sources: int) -> list[int]:
    """How many samples each entry has."""
    return np.bincount(samples.column("source").to_numpy(), minlength=num_sources).tolist()
