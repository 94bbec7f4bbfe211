"""Writing model.yaml, inference.yaml and, where the original can't read what is there, one whole weight file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cogvideox.conversion.manifest import write_manifest
from cogvideox.conversion.model_card import Card, write_card
from cogvideox.conversion.notes import CLI_DEMO
from cogvideox.conversion.original_export.model_yaml import published_model
from cogvideox.conversion.original_export.source import Source
from cogvideox.errors import CheckpointError
from cogvideox.geometry import Geometry
from cogvideox.released import generation_of
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.lora_map import adapted_name
from cogvideox.weights.safetensors_stream import Entry
from cogvideox.weights.sat_stream import write_sat_folder
from cogvideox.weights.transformer_map import PATCH_WEIGHTS

MODEL_YAML, SAMPLING_YAML, TRANSFORMER = "model.yaml", "inference.yaml", "transformer"
_HEAD = "# For the original CogVideoX program (sat/ of THUDM/CogVideo), written by tools/export_original.py.\n"


class _Dumper(yaml.SafeDumper):
    """Repeats what is the same instead of pointing to it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def export(source: Source, output: Path, card: Card, *, merge: bool, dtype: torch.dtype | None) -> list[str]:
    """Write a new folder, whole or not at all; return what the user should know.

    Args:
        merge: add the adapters to the weights (in fp32) instead of keeping them beside.
        dtype: None keeps each tensor's own.

    Raises: CheckpointError, ConfigError.
    """
    if merge and source.weights.lora is None:
        raise CheckpointError(f"{source.checkpoint.path} holds no LoRA adapters: leave out --merge_lora")
    in_place = source.readable_folder if dtype is None and not merge else None
    flat_patch = source.weights.plain[PATCH_WEIGHTS[0]].ndim == 2
    model = published_model(source.model(merged=merge), source.text_encoder, source.vae, flat_patch=flat_patch)
    load = in_place.resolve() if in_place is not None else output.resolve() / TRANSFORMER
    sampling = _sampling(source, load)
    entries = [] if in_place is not None else _entries(source, merge, dtype)
    with new_folder(output, sum(entry.num_bytes for entry in entries)) as partial:
        if entries:
            (partial / TRANSFORMER).mkdir()
            iteration = max(source.checkpoint.iteration, 1)
            write_sat_folder(partial / TRANSFORMER, iteration, entries, _tensors(source, merge), _extra(source, merge))
        for name, tree in ((MODEL_YAML, {"model": model}), (SAMPLING_YAML, {"args": sampling})):
            text = _HEAD + yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
            (partial / name).write_text(text, encoding="utf-8")
        write_card(partial, card, output.resolve().name)
        lora = source.weights.lora
        facts = {"merged": merge, "lora": None if lora is None else {"r": lora.rank, "alpha": lora.alpha}}
        write_manifest(partial, [*source.weights.files, *source.yaml_files], facts)
    return _notes(source, output, in_place, merge)


def _entries(source: Source, merge: bool, dtype: torch.dtype | None) -> list[Entry]:
    values = {**source.weights.plain, **({} if merge else source.weights.adapters)}
    return [
        Entry(
            _stored(name, source, merge),
            tuple(value.shape),
            dtype if dtype is not None and value.is_floating_point() else value.dtype,
        )
        for name, value in values.items()
    ]


def _tensors(source: Source, merge: bool) -> Iterator[tuple[str, Tensor]]:
    weights = source.weights.merged() if merge else source.weights.plain
    for name in source.weights.plain:
        yield _stored(name, source, merge), weights[name]
    for name, value in ({} if merge else source.weights.adapters).items():
        yield name_in_file(name), value


def _stored(name: str, source: Source, merge: bool) -> str:
    """As a model with these adapters stores it: the original looks for weights under `.original.` there."""
    return name_in_file(name if merge else adapted_name(name, source.weights.adapters))


def name_in_file(name: str) -> str:
    """A relative name under the transformer's prefix."""
    return TRANSFORMER_PREFIX + name


def _extra(source: Source, merge: bool) -> dict[str, Any]:
    """Our own entry of the file, so that this framework reads it back at the same strength."""
    lora = source.weights.lora
    return {} if merge or lora is None else {"lora": {"r": lora.rank, "alpha": lora.alpha}}


def _sampling(source: Source, load: Path) -> dict[str, Any]:
    """The section `args` of sampling: what the model was trained for, else what its generation is sampled with."""
    config = source.yaml.config
    assert config is not None, "an export has a YAML"
    sampling, data, image = source.sampling, config.data, config.model.noised_image_input
    deep = source.facts.patch_size[0]
    clip = generation_of(deep).clip
    size, fps = sampling.sampling_image_size or (clip.height, clip.width), sampling.sampling_fps
    frames = sampling.sampling_num_frames
    if data is not None:
        size, fps = data.video_size, int(data.fps)
        frames = Geometry().latent_frames(data.max_num_frames)
    precision = {name: True for name in ("bf16", "fp16") if getattr(sampling, name)}
    return {
        **({"image2video": True} if image else {}),
        "latent_channels": source.facts.out_channels,
        "mode": "inference",
        "load": str(load),
        "batch_size": 1,
        "input_type": "txt",
        "input_file": "configs/test.txt",
        "sampling_image_size": list(size),
        "sampling_num_frames": -(-frames // deep) * deep,  # 1.5 counts the added latent frame as well
        "sampling_fps": fps,
        **precision,
        "output_dir": "outputs/",
        "force_inference": True,
    }


def _notes(source: Source, output: Path, in_place: Path | None, merge: bool) -> list[str]:
    notes = []
    if in_place is not None:
        notes.append(f"the original reads the weights where they are, {in_place}: nothing was copied")
    lora = source.weights.lora
    if lora is not None and not merge:
        notes.append(f"{MODEL_YAML} states lora_alpha {lora.alpha:g}; without that line the original takes 1")
        notes.append(f"for the LoRA file of tools/convert_lora.py --to diffusers and {CLI_DEMO}")
    notes.append(
        "the original warns of missing names: those of conditioner and first_stage_model are loaded from other files; "
        "if it names model.diffusion_model, stop: those weights would be random"
    )
    table = source.facts.patch_size[0] == 1
    config = source.yaml.config
    if table and config is not None and config.data is not None:
        network = source.yaml.network
        covered = (network.get("latent_height", 60) * 8, network.get("latent_width", 90) * 8)
        if tuple(config.data.video_size) != covered:
            height, width = config.data.video_size
            notes.append(
                f"this model was trained at {height} x {width}; the original's 1.0 positions are right at "
                f"{covered[0]} x {covered[1]} only"
            )
    return notes
