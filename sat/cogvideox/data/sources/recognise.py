"""Which layout a path has."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cogvideox.data.media import VIDEO_SUFFIXES, suffix_of
from cogvideox.data.report import shown
from cogvideox.data.sources import hub, lines, saved, videofolder
from cogvideox.data.sources.spec import LAYOUTS, SourceSpec
from cogvideox.errors import DataError

_BY_SUFFIX = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    ".parquet": "parquet",
    ".tar": "webdataset",
}
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_FILES_OF = {"csv": "a .csv or .tsv file", "json": "a .json or .jsonl file"}


def recognised(spec: SourceSpec) -> SourceSpec:
    """The entry with its layout; what is on the hub, as a folder of this machine.

    Raises:
        DataError: nothing is there, or nothing that is known; with what was found.
    """
    if spec.layout == "hub":
        folder = hub.download(spec.path)
        return replace(spec, path=str(folder), layout=_of_folder(folder, spec))
    if spec.layout is not None:
        assert spec.layout in LAYOUTS, spec.layout
        if spec.layout in _FILES_OF and not os.path.isfile(spec.path):
            raise DataError(f"{spec.path} is no file; the layout {spec.layout} is that of {_FILES_OF[spec.layout]}")
        if spec.layout in ("lines", "videofolder", "datasets") and not os.path.isdir(spec.path):
            raise DataError(f"{spec.path} is no folder; the layout {spec.layout} is that of a folder")
        return spec
    path = Path(spec.path)
    if path.is_dir():
        return replace(spec, layout=_of_folder(path, spec))
    name = path.name.lower()
    if path.exists() or name.endswith(".tar") or name.endswith(_PACKED):
        return replace(spec, layout=_of_file(path))
    raise DataError(_not_there(spec.path))


def _of_file(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(_PACKED):
        return "webdataset"  # which says what to do
    layout = _BY_SUFFIX.get(path.suffix.lower())
    if layout is not None:
        return layout
    text = f"data {path} is a file of a layout that is not known; known are {', '.join(_BY_SUFFIX)}, and folders"
    if suffix_of(path.name) in VIDEO_SUFFIXES:
        text = f"data folder {path} is a file; it has to be a folder of videos with captions"
    elif suffix_of(path.name) == ".txt":
        text += f"; for {lines.VIDEOS} with {lines.CAPTIONS}, give their folder {path.parent}"
    raise DataError(text)


def _of_folder(folder: Path, spec: SourceSpec) -> str:
    if saved.is_saved(folder):
        return "datasets"
    if videofolder.metadata_of(folder) is not None:
        return "videofolder"
    if any((folder / (name or usual)).is_file() for name, usual in ((spec.video_column, lines.VIDEOS),)):
        return "lines"
    names = _names(folder)
    suffixes = {suffix_of(name) for name in names}
    if suffixes & set(VIDEO_SUFFIXES):
        return "pairs"
    if ".tar" in suffixes:
        return "webdataset"
    if ".parquet" in suffixes or any((folder / "data").glob("*.parquet")):
        return "parquet"
    tables = sorted(name for name in names if suffix_of(name) in _BY_SUFFIX)
    if tables and not any((folder / name).is_dir() for name in names):
        raise DataError(
            f"data folder {folder} holds no video but {', '.join(map(shown, tables[:5]))}; give the list itself, such "
            f"as {folder / tables[0]}"
        )
    return "pairs"


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise DataError(f"data folder {folder} can't be read: {error.strerror or error}") from error


def _not_there(path: str) -> str:
    text = f"data folder {path} does not exist; it has to be a folder of videos with captions, or a list of them"
    if path.count("/") == 1 and path[0] not in "./~":
        text += f"; a data set on Hugging Face is written as {{path: {path}, layout: hub}}"
    return text
