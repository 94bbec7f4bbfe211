"""`conversion.json` beside a result: what it was made of and what was written (cogvideox.weights.manifest)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.conversion.file_records import describe_folder, describe_input
from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import write_text_atomically
from cogvideox.weights.manifest import CONVERSION_MANIFEST, FileRecord, manifest_text
from cogvideox.weights.model_folder import read_json


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest. facts: what else is to be known of the result."""

    facts: Mapping[str, Any]
    inputs: tuple[FileRecord, ...] = ()
    outputs: tuple[FileRecord, ...] = ()

    def part(self, name: str) -> Manifest:
        """The files of one part, without saying so."""
        inputs, outputs = (_of_part(records, name) for records in (self.inputs, self.outputs))
        return Manifest(self.facts, inputs, outputs)

    def replacing(self, name: str, inputs: Iterable[FileRecord], outputs: Iterable[FileRecord]) -> Manifest:
        """With these files as those of one part."""
        return Manifest(self.facts, _replaced(self.inputs, name, inputs), _replaced(self.outputs, name, outputs))

    def for_others(self) -> Manifest:
        """Without the folders of this machine."""
        facts = {key: value for key, value in self.facts.items() if key != "overrides"}
        inputs = tuple({**each, "path": Path(each["path"]).name} for each in self.inputs)
        return Manifest(facts, inputs, self.outputs)

    def text(self) -> str:
        """As the file holds it."""
        return manifest_text(self.facts, self.inputs, self.outputs)

    def write(self, folder: Path) -> None:
        """Into the folder that it describes, as a whole or not at all."""
        write_text_atomically(folder / CONVERSION_MANIFEST, self.text())


def read_manifest(folder: Path) -> Manifest:
    """What a tool left in a folder. Raises: CheckpointError when it is missing, damaged or of something else."""
    content = read_json(folder / CONVERSION_MANIFEST)
    files = {name: content.pop(name, None) for name in ("inputs", "outputs")}
    for records in files.values():
        if not isinstance(records, list) or not all(isinstance(each, dict) and "path" in each for each in records):
            raise CheckpointError(f"{folder / CONVERSION_MANIFEST} is no manifest of a conversion")
    return Manifest(content, tuple(files["inputs"]), tuple(files["outputs"]))


def write_manifest(folder: Path, inputs: Iterable[Path], facts: Mapping[str, Any]) -> None:
    """Describe every file that is in `folder` by now, with SHA-256. facts: what else is to be known of the result."""
    records = tuple(describe_input(file, with_sha256=True) for file in inputs)
    Manifest(facts, records, tuple(describe_folder(folder, {}, with_sha256=True))).write(folder)


def _of_part(records: Iterable[FileRecord], name: str) -> tuple[FileRecord, ...]:
    return tuple(
        {key: value for key, value in each.items() if key != "part"} for each in records if each.get("part") == name
    )


def _replaced(old: Iterable[FileRecord], name: str, new: Iterable[FileRecord]) -> tuple[FileRecord, ...]:
    kept = (each for each in old if each.get("part") != name)
    return (*kept, *({"part": name, **each} for each in new))
