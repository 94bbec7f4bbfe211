"""Writing what a plan says, part by part: a part that is finished is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cogvideox.conversion.diffusers_import.model_yaml import TEXT_ENCODER, TRANSFORMER
from cogvideox.conversion.diffusers_import.plan import Plan, TransformerPart, VaePart
from cogvideox.conversion.file_records import describe_input, describe_written, described_meanwhile
from cogvideox.conversion.manifest import Manifest, read_manifest
from cogvideox.conversion.threads import one_thread
from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import check_writable, new_folder
from cogvideox.weights.hashes import FAST, SHA256, hash_of
from cogvideox.weights.safetensors_stream import WrittenFile
from cogvideox.weights.sat_folder import LATEST_FILE, VAE_FILE, new_iteration
from cogvideox.weights.sat_stream import stream_states
from cogvideox.weights.text_encoder_folder import copy_files
from cogvideox.weights.torch_save import stream_torch_file

ITERATION = 1
_HASHERS = 2  # inputs hashed at a time, beside the writing


Check = Callable[[], object]


@dataclass(frozen=True)
class Part:
    """One part of the result: what it is made of, and how.

    `write` calls what it is given before the part gets its name: whether the inputs were whole. It returns the part's
    files, names relative to the output.
    """

    name: str
    inputs: tuple[Path, ...]
    num_bytes: int
    write: Callable[[Check], list[WrittenFile]]


def convert(plan: Plan) -> None:
    """Write every part that the output folder doesn't hold yet, each as a whole or not at all.

    Raises: CheckpointError when the folder holds something else, or without space or permission, or for weights that
        can't be converted.
    """
    output, with_sha256 = plan.options.output, plan.options.sha256
    manifest = _begin(plan)
    parts = _parts(plan)
    done = {part.name for part in parts if _is_done(part, manifest, output, with_sha256)}
    check_writable(output, sum(part.num_bytes for part in parts if part.name not in done))
    output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part.name in done:
            print(f"  {part.name}: done before")
            continue
        begin = time.perf_counter()
        with one_thread(), described_meanwhile(part.inputs, with_sha256, _HASHERS) as inputs:
            written = part.write(inputs)
            outputs = [describe_written(output, file.name, file, with_sha256) for file in written]
            manifest = manifest.replacing(part.name, inputs(), outputs)
        manifest.write(output)
        print(f"  {part.name}: {time.perf_counter() - begin:.1f} s")


def _begin(plan: Plan) -> Manifest:
    """The manifest of a conversion that was begun here, or a new one in a folder that is new or empty."""
    output, dtype = plan.options.output, plan.options.dtype
    manifest = Manifest(
        {"source": plan.origin, "dtype": "as stored" if dtype is None else str(dtype).removeprefix("torch.")}
    )
    if not (output.is_dir() and any(output.iterdir())):
        check_writable(output, 0)
        output.mkdir(parents=True, exist_ok=True)
        manifest.write(output)
        return manifest
    try:
        found = read_manifest(output)
    except CheckpointError:
        found = Manifest({})
    if found.facts.keys() != manifest.facts.keys():
        raise CheckpointError(f"{output} exists and is not empty: choose another place, or remove it first")
    if found.facts != manifest.facts:
        there = f"{found.facts['source']} ({found.facts['dtype']})"
        raise CheckpointError(f"{output} holds a conversion of {there}: choose another place, or remove it")
    return found


def _parts(plan: Plan) -> list[Part]:
    output = plan.options.output
    found = []
    if (transformer := plan.transformer) is not None:
        size = sum(entry.num_bytes for entry in transformer.entries)
        files = (transformer.model.path / "config.json", *transformer.model.files)  # tables depend on the config
        found.append(Part("transformer", files, size, partial(_write_transformer, output, transformer, size)))
    if (vae := plan.vae) is not None:
        size = sum(entry.num_bytes for entry in vae.entries)
        files = (vae.model.path / "config.json", *vae.model.files)
        found.append(Part("vae", files, size, partial(_write_vae, output, vae)))
    if (t5 := plan.text_encoder) is not None:
        size = t5.num_bytes()
        found.append(Part("text_encoder", t5.all, size, partial(_copy_text_encoder, output, t5.all, size)))
    return found


def _is_done(part: Part, manifest: Manifest, output: Path, with_sha256: bool) -> bool:
    """Whether the manifest has this part, made of the same inputs, and its files are as they were written."""
    record = manifest.part(part.name)
    if not record.outputs or (with_sha256 and any(SHA256 not in each for each in record.inputs)):
        return False
    before = [{key: value for key, value in each.items() if key != SHA256} for each in record.inputs]
    if before != [describe_input(file, with_sha256=False) for file in part.inputs]:
        return False
    return all(
        (output / each["path"]).is_file() and hash_of(output / each["path"], FAST) == each[FAST]
        for each in record.outputs
    )


def _write_transformer(output: Path, part: TransformerPart, size: int, check: Check) -> list[WrittenFile]:
    with new_iteration(output / TRANSFORMER, ITERATION, size, overwrite=True) as (folder, _):
        written = stream_states(folder, ITERATION, part.entries, part.tensors(), {})
        check()
    latest = output / TRANSFORMER / LATEST_FILE
    name = f"{TRANSFORMER}/{LATEST_FILE}"
    return [
        _below(f"{TRANSFORMER}/{ITERATION}", written),
        WrittenFile(name, latest.stat().st_size, hash_of(latest, FAST)),
    ]


def _write_vae(output: Path, part: VaePart, check: Check) -> list[WrittenFile]:
    content = {"state_dict": {entry.name: entry for entry in part.entries}}

    def write(folder: Path) -> list[WrittenFile]:
        return [_below("vae", stream_torch_file(folder / VAE_FILE, content, part.entries, part.tensors()))]

    return _in_new_folder(output / "vae", sum(entry.num_bytes for entry in part.entries), write, check)


def _copy_text_encoder(output: Path, files: tuple[Path, ...], size: int, check: Check) -> list[WrittenFile]:
    def write(folder: Path) -> list[WrittenFile]:
        return [_below(TEXT_ENCODER, copy) for copy in copy_files(files, folder)]

    return _in_new_folder(output / TEXT_ENCODER, size, write, check)


def _in_new_folder(
    final: Path, num_bytes: int, write: Callable[[Path], list[WrittenFile]], check: Check
) -> list[WrittenFile]:
    with new_folder(final, num_bytes, overwrite=True) as folder:
        written = write(folder)
        check()
    return written


def _below(folder: str, file: WrittenFile) -> WrittenFile:
    return WrittenFile(f"{folder}/{file.name}", file.num_bytes, file.xxh3_128)
