"""Writing what a plan says, into a temporary folder that gets its final name when everything is in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cogvideox.conversion.diffusers_export.plan import Plan
from cogvideox.conversion.file_records import describe_folder, described_meanwhile
from cogvideox.conversion.hub import upload
from cogvideox.conversion.manifest import Manifest, read_manifest
from cogvideox.conversion.model_card import Card, card_of, write_card
from cogvideox.conversion.threads import one_thread
from cogvideox.weights import diffusers_folder as folders
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.lora_file import write_lora
from cogvideox.weights.manifest import CONVERSION_MANIFEST
from cogvideox.weights.model_folder import find_weights
from cogvideox.weights.safetensors_stream import Entry, WrittenFile
from cogvideox.weights.sat_folder import VAE_FILE, find_states_file
from cogvideox.weights.text_encoder_folder import cast_encoder, copy_files

_TYPE_NAMES = {
    None: "as stored",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}


def convert(plan: Plan) -> None:
    """Write the plan's output folder as a whole or not at all, with a manifest of hashes.

    Raises: CheckpointError when the folder is not empty, or without space or permission, or for weights that
        can't be converted.
    """
    entries = _transformer_entries(plan)
    output, with_sha256 = plan.options.output, plan.options.sha256
    with (
        one_thread(),
        new_folder(output, _needed_bytes(plan, entries)) as partial,
        described_meanwhile(_input_files(plan), with_sha256) as inputs,
    ):
        written = _write_parts(plan, partial, entries)
        write_card(partial, _card(plan), output.resolve().name)
        known = {str(Path(folder) / file.name): file for folder, files in written.items() for file in files}
        outputs = describe_folder(partial, known, with_sha256)
        Manifest(_facts(plan), tuple(inputs()), tuple(outputs)).write(partial)


def _transformer_entries(plan: Plan) -> list[Entry]:
    if not plan.writes_transformer:
        return []
    assert plan.weights is not None and plan.facts is not None, "a transformer is asked for"
    shapes = {name: (value.shape, value.dtype) for name, value in plan.weights.plain.items()}
    return folders.transformer_entries(shapes, plan.facts, plan.dtype)


def _needed_bytes(plan: Plan, entries: list[Entry]) -> int:
    total = sum(entry.num_bytes for entry in entries)
    for state in (plan.vae, plan.weights.adapters if plan.weights is not None and plan.writes_lora else None):
        total += sum(value.numel() * (plan.dtype or value.dtype).itemsize for value in (state or {}).values())
    return total + (plan.text_encoder.num_bytes(plan.text_encoder_dtype) if plan.text_encoder is not None else 0)


def _write_parts(plan: Plan, target: Path, entries: list[Entry]) -> dict[str, list[WrittenFile]]:
    """Write every part; return the weight files by folder ("" is the top)."""
    whole = plan.options.part == "pipeline"
    written: dict[str, list[WrittenFile]] = {}
    if plan.writes_transformer:
        assert plan.facts is not None, "a transformer is asked for"
        name = "transformer" if whole else ""
        config = folders.transformer_config(plan.facts, plan.settings)
        with _timed("transformer"):
            written[name] = folders.write_transformer(
                target / name, plan.transformer_state, entries, config, plan.facts, plan.options.max_shard_bytes
            )
    if plan.vae is not None:
        name = "vae" if whole else ""
        config = folders.vae_config({key: value.shape for key, value in plan.vae.items()}, plan.settings)
        with _timed("VAE"):
            written[name] = folders.write_vae(target / name, plan.vae, config, plan.dtype)
    if plan.writes_lora:
        assert plan.weights is not None and plan.weights.lora is not None, "a LoRA is asked for"
        lora = plan.weights.lora
        with _timed(f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}"):
            files = write_lora(target, plan.weights.adapters, lora, "diffusers", dtype=plan.dtype)
            written[""] = [*written.get("", []), *files]
    if whole:
        written |= _write_pipeline_rest(plan, target)
    return written


def _write_pipeline_rest(plan: Plan, target: Path) -> dict[str, list[WrittenFile]]:
    files = plan.text_encoder
    assert files is not None and plan.facts is not None, "a pipeline is asked for"
    written = {}
    with _timed("text encoder and tokenizer"):
        if plan.text_encoder_dtype is None:
            written["text_encoder"] = copy_files(files.encoder, target / "text_encoder")
        else:
            written["text_encoder"] = cast_encoder(
                files, target / "text_encoder", plan.text_encoder_dtype, plan.options.max_shard_bytes
            )
        written["tokenizer"] = copy_files(files.tokenizer, target / "tokenizer")
    folders.write_json(target / "scheduler" / "scheduler_config.json", folders.scheduler_config(plan.settings))
    index = folders.model_index(plan.settings, files.tokenizer_class, folders.pipeline_class(plan.facts))
    folders.write_json(target / "model_index.json", index)
    return written


def _input_files(plan: Plan) -> list[Path]:
    files = list(plan.weights.files) if plan.weights is not None else []
    files += _vae_files(plan.vae_file) if plan.vae_file is not None else []
    files += plan.text_encoder.all if plan.text_encoder is not None else ()
    return list(dict.fromkeys([*files, *plan.yamls]))


def _vae_files(place: Path) -> list[Path]:
    if (place / "config.json").is_file():
        return [place / "config.json", *find_weights(place)[1]]
    return [place / VAE_FILE if (place / VAE_FILE).is_file() else find_states_file(place)]


def _card(plan: Plan) -> Card:
    lora = plan.weights.lora if plan.weights is not None else None
    files = [*(plan.weights.files if plan.weights is not None else ()), *([plan.vae_file] if plan.vae_file else [])]
    more = {"merged": f"LoRA of rank {lora.rank}"} if lora is not None and plan.options.merge_lora else {}
    kept = lora if plan.writes_lora else None
    return card_of(
        files[0],
        plan.facts,
        kept,
        kind=plan.options.part,
        files=files,
        more=more,
        text_length=plan.settings.text_length,
    )


def _facts(plan: Plan) -> dict[str, Any]:
    """What the manifest says beside the files."""
    facts: dict[str, Any] = {"dtype": _TYPE_NAMES[plan.dtype]}
    if plan.options.overrides:
        facts["overrides"] = plan.options.overrides
    if plan.settings.image_latent_scale is not None:
        folded = plan.options.fold_image_scale
        facts["image_latent_scale"] = plan.settings.pipeline_image_scale if folded else plan.settings.image_latent_scale
    lora = plan.weights.lora if plan.weights is not None else None
    if lora is not None:
        facts["lora"] = {"r": lora.rank, "alpha": lora.alpha, "merged": plan.options.merge_lora}
    return facts


@contextmanager
def _timed(what: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    print(f"  {what}: {time.perf_counter() - begin:.1f} s")


def push_to_hub(folder: Path) -> str:
    """Upload to a repository of the user's own, named as the folder; return its address.

    The manifest goes without the folders of this machine.
    Raises: CheckpointError when the upload is refused (no token, no network).
    """
    return upload(folder, {CONVERSION_MANIFEST: read_manifest(folder).for_others().text().encode()})
