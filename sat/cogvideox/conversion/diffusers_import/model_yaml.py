"""The YAML files that go with converted weights: a released model's file by its path, and what differs from it."""

from __future__ import annotations

import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from cogvideox import commands
from cogvideox.config.check import check_alone
from cogvideox.config.load import load_config
from cogvideox.conversion.diffusers_import.plan import Plan
from cogvideox.conversion.diffusers_import.settings import family_of
from cogvideox.conversion.file_records import describe_input, describe_output
from cogvideox.conversion.licences import copy_licence, licence_in
from cogvideox.conversion.manifest import read_manifest
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.released import Family
from cogvideox.weights.diffusers_folder import SAME_SCALE, PipelineSettings
from cogvideox.weights.families import TransformerFacts
from cogvideox.weights.manifest import CONVERSION_MANIFEST

MODEL_YAML, LORA_YAML = "model.yaml", "model_lora.yaml"
TRANSFORMER, VAE, TEXT_ENCODER = "transformer", "vae/3d-vae.pt", "t5-v1_1-xxl"
_NETWORK = "model.network_config.params"


def write_yamls(plan: Plan) -> list[str]:
    """Write model.yaml, model_lora.yaml and the source's licence into the output folder; return commands that use them.

    Nothing is written without a transformer, or for one that no released family describes, which a line says.
    """
    licence = copy_licence(licence_in(plan.source.root), plan.options.output)
    if plan.transformer is None:
        return []
    family = family_of(plan.transformer.model.config)
    if family is None:
        what = plan.transformer.facts.summary
        return [f"note: no {MODEL_YAML}: no released model is built like {what}; write its YAML after one in configs/"]
    for name, text in _texts(plan, plan.transformer.facts, family).items():
        _write(plan.options.output / name, text)
    _record(plan, licence)
    return _commands(plan, family)


def check_yamls(plan: Plan) -> None:
    """Whether the YAML files that will be written pass the check. Raises: CheckpointError that says what doesn't fit.

    Called before anything is converted: weights whose configuration is refused later are of no use.
    """
    family = family_of(plan.transformer.model.config) if plan.transformer is not None else None
    if plan.transformer is None or family is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _texts(plan, plan.transformer.facts, family).items():
            file = Path(folder, name)
            file.write_text(text, encoding="utf-8")
            try:
                check_alone(str(file))
            except ConfigError as error:
                reason = str(error).replace(str(file), name)
                raise CheckpointError(
                    f"{plan.origin} can't be trained or sampled here; the check of its {name} would say: {reason}"
                ) from error


def _texts(plan: Plan, facts: TransformerFacts, family: Family) -> dict[str, str]:
    """The YAML files by name."""
    wanted = {**_paths(plan), **_network(facts, plan.settings, family), **_rest(plan)}
    origin = " ".join(plan.origin.split())  # a comment has one line
    head = f"# {origin}, converted by tools/convert_weight_hf2sat.py. Keys that differ from:\n"
    texts = {}
    for name, base in ((MODEL_YAML, family.yaml), (LORA_YAML, family.lora_yaml)):
        file = commands.ROOT / base
        tree = {"include": str(file), **_differing(wanted, file)}
        texts[name] = head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return texts


def _record(plan: Plan, licence: str | None) -> None:
    """Into the manifest: the files, the licence too, and the configurations of the source that say what is in them."""
    output, with_sha256, root = plan.options.output, plan.options.sha256, plan.source.root
    configs = [root / CONVERSION_MANIFEST, root / "model_index.json", root / "config.json"]
    configs += [root / part / "config.json" for part in ("transformer", "vae")]
    configs.append(root / "scheduler" / "scheduler_config.json")
    inputs = [describe_input(file, with_sha256) for file in configs if file.is_file()]
    outputs = [describe_output(output, name, with_sha256) for name in (MODEL_YAML, LORA_YAML, licence) if name]
    read_manifest(output).replacing("yaml", inputs, outputs).write(output)


def _write(file: Path, text: str) -> None:
    """Write a file; one with other content, perhaps edited by hand, is kept under another name, and said so."""
    if file.exists() and file.read_text(encoding="utf-8") != text:
        kept = next(name for n in count(1) if not (name := file.with_name(f"{file.name}.{n}")).exists())
        file.rename(kept)
        print(f"  {file.name} was there with other content: kept as {kept.name}")
    file.write_text(text, encoding="utf-8")


def _paths(plan: Plan) -> dict[str, Any]:
    """Of all three parts, also of one that --only left for a later run: its place is known."""
    folder = plan.options.output.resolve()
    places = {
        "args.load": TRANSFORMER,
        "model.first_stage_config.params.ckpt_path": VAE,
        "model.conditioner_config.params.encoder.params.model_dir": TEXT_ENCODER,
    }
    return {key: str(folder / name) for key, name in places.items()}


def _network(facts: TransformerFacts, settings: PipelineSettings, family: Family) -> dict[str, Any]:
    found: dict[str, Any] = {
        "hidden_size": facts.hidden_size,
        "num_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "num_frames": settings.num_frames,
        "in_channels": facts.in_channels,
        "out_channels": facts.out_channels,
        "time_embed_dim": facts.time_embed_dim,
        "temporal_compression": settings.temporal_compression,
        "text_length": settings.text_length,
        "modules.patch_embed_config.params.text_hidden_size": facts.text_width,
        "modules.adaln_layer_config.params.qk_ln": facts.qk_norm,
    }
    if facts.ofs_embed_dim is not None:
        found["ofs_embed_dim"] = facts.ofs_embed_dim
    # CogVideoX 1.5 only says how far its positions reach: never less than those of the released model.
    limits = (family.generation.latent_height, family.generation.latent_width) if facts.patch_size[0] > 1 else (0, 0)
    found["latent_height"] = max(settings.latent_height, limits[0])
    found["latent_width"] = max(settings.latent_width, limits[1])
    if not facts.rotary:
        positions = "modules.pos_embed_config.params"
        found[f"{positions}.height_interpolation"] = settings.spatial_interpolation
        found[f"{positions}.width_interpolation"] = settings.spatial_interpolation
        found[f"{positions}.time_interpolation"] = settings.temporal_interpolation
    return {f"{_NETWORK}.{key}": value for key, value in found.items()}


def _rest(plan: Plan) -> dict[str, Any]:
    settings = plan.settings
    found: dict[str, Any] = {
        "model.scale_factor": settings.scale_factor,
        "model.schedule_config.params.shift_scale": settings.shift_scale,
        "model.schedule_config.params.num_timesteps": settings.num_timesteps,
        "model.schedule_config.params.beta_start": settings.beta_start,
        "model.schedule_config.params.beta_end": settings.beta_end,
        "model.schedule_config.params.zero_terminal_snr": settings.zero_terminal_snr,
        "model.conditioner_config.params.encoder.params.max_length": settings.text_length,
    }
    if settings.image_latent_scale is not None:
        found["model.image_latent_scale"] = settings.image_latent_scale
    if plan.vae_config:
        config = plan.vae_config
        widths = config["block_out_channels"]
        sizes = {
            "z_channels": config["latent_channels"],
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config["layers_per_block"],
            "norm_num_groups": settings.vae_norm_groups,
            "temporal_compression": int(config["temporal_compression_ratio"]),
        }
        found |= {f"model.first_stage_config.params.{key}": value for key, value in sizes.items()}
    return found


def _differing(wanted: dict[str, Any], base: Path) -> dict[str, Any]:
    """The wanted values that `base` doesn't say, as a tree."""
    stated = _stated(base)
    tree: dict[str, Any] = {}
    for path, value in wanted.items():
        keys = path.split(".")
        if not _same(_value_at(stated, keys), value):
            node = tree
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = value
    return tree


@cache
def _stated(base: Path) -> Any:
    """All values of a shipped file, which stays as it is while a program runs."""
    return yaml.safe_load(load_config([str(base)], [], "train", partial=True).resolved_yaml)


def _value_at(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _same(stated: Any, value: Any) -> bool:
    if isinstance(value, float) and isinstance(stated, int | float):
        return abs(stated - value) <= SAME_SCALE * abs(value)
    return stated == value


def _commands(plan: Plan, family: Family) -> list[str]:
    """What is still missing; training and sampling, as lines for a shell."""
    model, lora = (plan.options.output / name for name in (MODEL_YAML, LORA_YAML))
    prompt = "a ship at sea@@ship.png" if family.image_input else "a ship at sea"
    absent = [name for name in (VAE, TEXT_ENCODER) if not (plan.options.output / name).exists()]
    notes = [f"note: {MODEL_YAML} expects {name}, which isn't there yet" for name in absent]
    sft, inference = (commands.ROOT / name for name in (family.generation.training_yaml, family.sampling_yaml))
    train = [commands.shown(lora), commands.shown(sft), commands.override("args.train_data", ["my_clips"])]
    sample = [commands.shown(model), commands.shown(inference), commands.override("args.prompts", [prompt])]
    steps = [("train a LoRA on your clips", commands.train(train)), ("sample videos", commands.sample(sample))]
    return [*notes, commands.next_steps(steps)]
