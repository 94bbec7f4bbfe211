"""What was written into a folder, with hashes, and finding it again from one of its files. One shape for every program:

    {what else is to be known of the result,
     "inputs":  [{"path": absolute, "bytes", "xxh3_128", "sha256"}, ...],
     "outputs": [{"path": inside the folder, "bytes", "xxh3_128", "sha256"}, ...]}

    <run>/<iteration>/manifest.json    of a checkpoint: weights, and the training state of every process
    <folder>/conversion.json           of what a tool wrote

"sha256" is there where it was asked for, and always in what the LoRA tools write. A tool that works part by part adds
"part" to each file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import write_text_atomically
from cogvideox.weights.hashes import FAST
from cogvideox.weights.safetensors_stream import WrittenFile

FileRecord = dict[str, Any]  # path, bytes, xxh3_128, sha256 when it was asked for, part where there are several
CHECKPOINT_MANIFEST = "manifest.json"
CONVERSION_MANIFEST = "conversion.json"
# How many folders up a manifest may be: <iteration>/training_state/rank_00000.pt, <folder>/transformer/1/mp_rank_00_...
_LEVELS = {CHECKPOINT_MANIFEST: 2, CONVERSION_MANIFEST: 3}


@dataclass(frozen=True)
class Recorded:
    """What a manifest says of one file."""

    file: Path
    manifest: Path
    num_bytes: int
    xxh3_128: str  # in hexadecimal


def written_record(file: WrittenFile) -> FileRecord:
    """A file that was hashed while it was written."""
    return {"path": file.name, "bytes": file.num_bytes, FAST: file.xxh3_128}


def manifest_text(facts: Mapping[str, Any], inputs: Iterable[FileRecord], outputs: Iterable[FileRecord]) -> str:
    """As the file holds it."""
    return json.dumps({**facts, "inputs": list(inputs), "outputs": list(outputs)}, indent=2) + "\n"


def write_checkpoint_manifest(folder: Path, iteration: int, files: Iterable[WrittenFile]) -> None:
    """Describe a checkpoint that is about to be committed. files: every one in `folder`, names relative to it."""
    outputs = sorted(map(written_record, files), key=lambda record: record["path"])
    text = manifest_text({"iteration": iteration}, [], outputs)
    needed_bytes = sum(record["bytes"] for record in outputs) + len(text)
    write_text_atomically(folder / CHECKPOINT_MANIFEST, text, needed_bytes)


def find_record(file: Path) -> Recorded | None:
    """What a manifest beside or above a file says of it; None when none names it, as for files of others.

    Raises: CheckpointError for a manifest that is damaged.
    """
    for path in dict.fromkeys((file.absolute(), Path(os.path.realpath(file)))):
        for name, levels in _LEVELS.items():
            for folder in path.parents[:levels]:
                manifest = folder / name
                found = _outputs(manifest) if manifest.is_file() else {}
                inside = path.relative_to(folder).as_posix()
                if inside in found:
                    return Recorded(file, manifest, *found[inside])
    return None


def listed_files(folder: Path) -> list[Path]:
    """What the manifests in a folder list, but for the texts that everybody may edit: `latest` and YAML.

    Raises: CheckpointError for a manifest that is damaged.
    """
    manifests = [folder / name for name in _LEVELS]
    listed = [folder / name for each in manifests if each.is_file() for name in _outputs(each)]
    return [file for file in listed if file.name != "latest" and file.suffix != ".yaml"]


def _outputs(manifest: Path) -> dict[str, tuple[int, str]]:
    """Bytes and hash by path; {} for another program's file of that name."""
    advice = "copy the whole folder again, or remove this file, and with it the check of the others"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"inputs", "outputs"} <= content.keys():
            return {}
        return dict(_output(record) for record in content["outputs"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        reason = str(error).splitlines()[0][:80]
        raise CheckpointError(f"{manifest}, which has the hashes of files, is damaged ({reason}): {advice}") from error


def _output(record: Mapping[str, Any]) -> tuple[str, tuple[int, str]]:
    """Raises: ValueError, TypeError, LookupError for what is none."""
    path, num_bytes, fast = record["path"], record["bytes"], record[FAST]
    if not (isinstance(path, str) and type(num_bytes) is int and isinstance(fast, str)):
        raise ValueError("a file without path, size or hash")
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path} is outside of its folder")
    return path, (num_bytes, fast)
