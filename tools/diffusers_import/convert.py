"""Writing what a plan says, part by part: a part that is finished is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import check_writable, new_folder, write_text_atomically
from cogvideox.weights.hashes import FAST, SHA256, hash_of
from cogvideox.weights.safetensors_stream import WrittenFile
from cogvideox.weights.sat_folder import VAE_FILE, new_iteration
from cogvideox.weights.sat_stream import stream_states, stream_torch_file
from cogvideox.weights.text_encoder_folder import copy_files
from conversion.file_records import describe_input, describe_written
from conversion.manifest import MANIFEST

from diffusers_import.model_yaml import TEXT_ENCODER, TRANSFORMER
from diffusers_import.plan import Plan, TransformerPart, VaePart

ITERATION = 1
_HASHERS = 2  # inputs hashed at a time, beside the writing


@dataclass(frozen=True)
class Part:
    """One part of the result: what it is made of, and how. `write` returns its files, names relative to the output."""

    name: str
    inputs: tuple[Path, ...]
    num_bytes: int
    write: Callable[[], list[WrittenFile]]


def convert(plan: Plan) -> None:
    """Write every part that the output folder doesn't hold yet, each as a whole or not at all.

    Raises: CheckpointError when the folder holds something else, or without space or permission, or for weights that
        can't be converted.
    """
    output = plan.options.output
    manifest = _begin(plan)
    parts = _parts(plan)
    done = {part.name for part in parts if _is_done(part, manifest, output, plan.options.sha256)}
    check_writable(output, sum(part.num_bytes for part in parts if part.name not in done))
    output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part.name in done:
            print(f"  {part.name}: done before")
            continue
        begin = time.perf_counter()
        with ThreadPoolExecutor(max_workers=_HASHERS) as pool:
            with_sha256 = plan.options.sha256
            inputs = [pool.submit(describe_input, file, with_sha256) for file in part.inputs]
            written = part.write()
            manifest["parts"][part.name] = {
                "inputs": [each.result() for each in inputs],
                "outputs": [describe_written(output / file.name, file.name, file, with_sha256) for file in written],
            }
        _save(output, manifest)
        print(f"  {part.name}: {time.perf_counter() - begin:.1f} s")


def _begin(plan: Plan) -> dict[str, Any]:
    """The manifest of a conversion that was begun here, or a new one in a folder that is new or empty."""
    output = plan.options.output
    manifest = {
        "source": plan.options.source,
        "dtype": "as stored" if plan.options.dtype is None else str(plan.options.dtype).removeprefix("torch."),
        "parts": {},
    }
    if not (output.is_dir() and any(output.iterdir())):
        check_writable(output, 0)
        output.mkdir(parents=True, exist_ok=True)
        _save(output, manifest)
        return manifest
    try:
        found = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        same = all(found[key] == manifest[key] for key in ("source", "dtype")) and isinstance(found["parts"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{output} exists and is not empty: choose another place, or remove it first") from None
    if not same:
        raise CheckpointError(
            f"{output} holds a conversion of {found['source']} ({found['dtype']}): choose another place, or remove it"
        )
    return found


def _parts(plan: Plan) -> list[Part]:
    output = plan.options.output
    found = []
    if plan.transformer is not None:
        transformer = plan.transformer
        size = sum(entry.num_bytes for entry in transformer.entries)
        files = (transformer.model.path / "config.json", *transformer.model.files)  # tables depend on the config
        found.append(Part("transformer", files, size, lambda: _write_transformer(output, transformer, size)))
    if plan.vae is not None:
        vae = plan.vae
        size = sum(entry.num_bytes for entry in vae.entries)
        found.append(Part("vae", vae.model.files, size, lambda: _write_vae(output, vae)))
    if plan.text_encoder is not None:
        files, size = plan.text_encoder.all, plan.text_encoder.num_bytes()
        found.append(Part("text_encoder", files, size, lambda: _copy_text_encoder(output, files, size)))
    return found


def _is_done(part: Part, manifest: dict[str, Any], output: Path, with_sha256: bool) -> bool:
    """Whether the manifest has this part, made of the same inputs, and its files are as they were written."""
    record = manifest["parts"].get(part.name)
    if record is None or (with_sha256 and any(SHA256 not in each for each in record["inputs"])):
        return False
    before = [{key: value for key, value in each.items() if key != SHA256} for each in record["inputs"]]
    if before != [describe_input(file, with_sha256=False) for file in part.inputs]:
        return False
    places = {each["path"]: output / each["path"] for each in record["outputs"]}
    return all(
        places[each["path"]].is_file() and hash_of(places[each["path"]], FAST) == each[FAST]
        for each in record["outputs"]
    )


def _write_transformer(output: Path, part: TransformerPart, size: int) -> list[WrittenFile]:
    with new_iteration(output / TRANSFORMER, ITERATION, size, overwrite=True) as (partial, _):
        written = stream_states(partial, ITERATION, part.entries, part.tensors(), {})
    return [_below(f"{TRANSFORMER}/{ITERATION}", written)]


def _write_vae(output: Path, part: VaePart) -> list[WrittenFile]:
    content = {"state_dict": {entry.name: entry for entry in part.entries}}

    def write(folder: Path) -> list[WrittenFile]:
        return [_below("vae", stream_torch_file(folder / VAE_FILE, content, part.entries, part.tensors()))]

    return _in_new_folder(output / "vae", sum(entry.num_bytes for entry in part.entries), write)


def _copy_text_encoder(output: Path, files: tuple[Path, ...], size: int) -> list[WrittenFile]:
    def write(folder: Path) -> list[WrittenFile]:
        return [_below(TEXT_ENCODER, copy) for copy in copy_files(files, folder)]

    return _in_new_folder(output / TEXT_ENCODER, size, write)


def _in_new_folder(final: Path, num_bytes: int, write: Callable[[Path], list[WrittenFile]]) -> list[WrittenFile]:
    with new_folder(final, num_bytes, overwrite=True) as partial:
        written = write(partial)
    return written


def _below(folder: str, file: WrittenFile) -> WrittenFile:
    return WrittenFile(f"{folder}/{file.name}", file.num_bytes, file.xxh3_128)


def _save(output: Path, manifest: dict[str, Any]) -> None:
    write_text_atomically(output / MANIFEST, json.dumps(manifest, indent=2) + "\n")
