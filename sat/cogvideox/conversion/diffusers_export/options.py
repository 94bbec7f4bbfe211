"""The command line of convert_weight_sat2hf.py."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cogvideox.conversion.command_line import Parser, add_output, possible_path
from cogvideox.errors import ConfigError

Part = Literal["pipeline", "transformer", "vae", "lora"]
_DESCRIPTION = """\
Convert a SAT checkpoint for diffusers: a whole pipeline folder, only the transformer, only the VAE, or a
LoRA file.

Sizes come from the checkpoint; the rest comes from the YAML it was trained with. A run folder has that as
training_config.yaml, which is found by itself; for published checkpoints give --base.
"""
_EPILOG = """\
examples:
  a run of this framework (a LoRA run gives its base pipeline plus pytorch_lora_weights.safetensors):
    python tools/convert_weight_sat2hf.py --checkpoint ckpts/lora-06-01-12-00 --output_path my_pipeline --verify
  the same with the LoRA merged into the weights:
    python tools/convert_weight_sat2hf.py --checkpoint ckpts/lora-06-01-12-00 --output_path merged --merge_lora
  only the LoRA file:
    python tools/convert_weight_sat2hf.py --checkpoint ckpts/lora-06-01-12-00 --output_path my_lora --only lora
  published weights:
    python tools/convert_weight_sat2hf.py --base configs/cogvideox_2b.yaml --output_path CogVideoX-2b --fp16 \\
        --checkpoint CogVideoX-2b-sat/transformer --vae CogVideoX-2b-sat/vae/3d-vae.pt \\
        --text_encoder CogVideoX-2b-sat/t5-v1_1-xxl
"""


@dataclass(frozen=True)
class Options:
    """What was asked for. Fields under `claims` are old flags that state facts: compared, and
    believed for a VAE without YAML only."""

    checkpoint: Path | None
    iteration: str | None
    base: tuple[str, ...]
    overrides: tuple[str, ...]
    allow_unknown: bool
    vae: Path | None
    text_encoder: Path | None
    text_encoder_cache_dir: Path | None
    output: Path
    part: Part
    dtype: torch.dtype | None  # None keeps every tensor's own
    merge_lora: bool
    fold_image_scale: bool
    max_shard_bytes: int
    sha256: bool
    typecast_text_encoder: bool
    push_to_hub: bool
    verify: bool
    # claims
    num_layers: int | None
    num_attention_heads: int | None
    rotary: bool
    scaling_factor: float | None
    snr_shift_scale: float | None
    i2v: bool
    version: str | None


def parse_options(argv: Sequence[str]) -> Options:
    """Raises: ConfigError for unknown flags and combinations that make no sense."""
    found = _parser().parse_args(list(argv))
    if found.checkpoint is None and found.vae is None:
        raise ConfigError("nothing to convert: give --checkpoint (a run folder, iteration folder or file), or --vae")
    part: Part = found.only or ("pipeline" if found.checkpoint is not None else "vae")
    if part != "vae" and found.checkpoint is None:
        raise ConfigError(f"--only {part} needs --checkpoint")
    if part == "lora" and found.merge_lora:
        raise ConfigError("--merge_lora makes a transformer without LoRA: drop it, or use --only transformer")
    if found.typecast_text_encoder and found.dtype is None:
        raise ConfigError("--typecast_text_encoder needs --fp16, --bf16 or --fp32 to say which type")
    return Options(
        checkpoint=found.checkpoint,
        iteration=found.iteration,
        base=tuple(word for word in found.base if "=" not in word or os.path.isfile(word)),
        overrides=tuple(word for word in found.base if "=" in word and not os.path.isfile(word)),
        allow_unknown=found.allow_unknown,
        vae=found.vae,
        text_encoder=found.text_encoder,
        text_encoder_cache_dir=found.text_encoder_cache_dir,
        output=found.output_path,
        part=part,
        dtype=found.dtype,
        merge_lora=found.merge_lora,
        fold_image_scale=found.fold_image_scale,
        max_shard_bytes=parse_size(found.max_shard_size),
        sha256=found.sha256,
        typecast_text_encoder=found.typecast_text_encoder,
        push_to_hub=found.push_to_hub,
        verify=found.verify,
        num_layers=found.num_layers,
        num_attention_heads=found.num_attention_heads,
        rotary=found.use_rotary_positional_embeddings,
        scaling_factor=found.scaling_factor,
        snr_shift_scale=found.snr_shift_scale,
        i2v=found.i2v,
        version=found.version,
    )


def parse_size(text: str) -> int:
    """Bytes of e.g. 5GB, 500MB, 1.5GiB or a plain number, which is bytes. Raises: ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    size = 0
    if match:
        power = " KMGT".index(match.group(2).upper() or " ")
        size = int(float(match.group(1)) * (1024 if match.group(3) else 1000) ** power)
    if size < 1:
        raise ConfigError(f"--max_shard_size {text!r} is no size: write e.g. 5GB or 500MB")
    return size


def _parser() -> Parser:
    parser = Parser(_DESCRIPTION, _EPILOG)
    _add_inputs(parser.add_argument_group("input"))
    _add_outputs(parser.add_argument_group("output"))
    when = (
        "Derived when left out; one that contradicts the checkpoint is an error. A VAE alone, without YAML, needs them."
    )
    _add_claims(parser.add_argument_group("old flags", when))
    return parser


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint",
        "--transformer_ckpt_path",
        type=possible_path,
        metavar="PATH",
        help="run folder (its `latest` is taken), iteration folder, .pt or .safetensors file",
    )
    group.add_argument("--iteration", metavar="N", help="take this one instead of the latest (500, 500-ema)")
    group.add_argument(
        "--base",
        nargs="+",
        default=[],
        metavar="YAML",
        help="model YAML and key=value overrides, as for training; by default the run's training_config.yaml",
    )
    group.add_argument(
        "--allow-unknown", "--allow_unknown", action="store_true", help="unknown keys in the YAML only warn"
    )
    group.add_argument(
        "--vae",
        "--vae_ckpt_path",
        type=possible_path,
        metavar="PATH",
        help="3d-vae.pt; by default what the YAML names",
    )
    group.add_argument(
        "--text_encoder", type=possible_path, metavar="DIR", help="T5 folder; by default what the YAML names"
    )
    group.add_argument(
        "--text_encoder_cache_dir",
        type=possible_path,
        metavar="DIR",
        help="T5 folder, or a Hugging Face cache that holds it",
    )


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    add_output(group)
    group.add_argument("--only", choices=("transformer", "vae", "lora"), help="this part instead of a whole pipeline")
    group.add_argument(
        "--merge_lora",
        action="store_true",
        help="add the LoRA to the weights (in float32) instead of a file beside",
    )
    group.add_argument(
        "--fold_image_scale",
        action="store_true",
        help="image-to-video: multiply the patch projection by what diffusers scales the image latent wrongly by",
    )
    group.add_argument(
        "--max_shard_size", default="10GB", metavar="SIZE", help="largest weight file, e.g. 5GB or 500MB (10GB)"
    )
    group.add_argument("--sha256", action="store_true", help="SHA-256 of all weight files in conversion.json as well")
    group.add_argument("--typecast_text_encoder", action="store_true", help="store T5 in the chosen type as well")
    group.add_argument(
        "--verify",
        action="store_true",
        help="open the result with diffusers; compare every tensor, and a forward pass of both programs",
    )
    group.add_argument(
        "--push_to_hub", action="store_true", help="upload to your Hugging Face account, named as the folder"
    )


def _add_claims(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num_layers", type=int)
    group.add_argument("--num_attention_heads", type=int)
    group.add_argument("--use_rotary_positional_embeddings", action="store_true")
    group.add_argument("--scaling_factor", type=float)
    group.add_argument("--snr_shift_scale", type=float)
    group.add_argument("--i2v", action="store_true")
    group.add_argument("--version", choices=("1.0", "1.5"))
