"""The command line of convert_weight_hf2sat.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cogvideox.conversion.command_line import Parser, add_output, possible_path

PARTS = ("transformer", "vae", "text_encoder")
_DESCRIPTION = """\
Convert a diffusers pipeline for this framework and for SAT: transformer/, vae/3d-vae.pt, t5-v1_1-xxl/, and the YAML
files to train it with. Interrupted downloads and conversions go on where they were when the command is repeated.

examples:
  from the Hugging Face hub:
    python tools/convert_weight_hf2sat.py THUDM/CogVideoX-5b --output_path CogVideoX-5b-sat
  from a folder, with every tensor and one forward pass compared:
    python tools/convert_weight_hf2sat.py CogVideoX-2b --output_path CogVideoX-2b-sat --verify
  only the transformer, in bf16:
    python tools/convert_weight_hf2sat.py my_model --output_path my_model-sat --only transformer --bf16
"""


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    source: str  # a folder, or a name on the Hugging Face hub
    revision: str | None
    cache_dir: Path | None
    output: Path
    parts: tuple[str, ...] | None  # None: what the source has
    dtype: torch.dtype | None  # None keeps the stored one
    sha256: bool
    verify: bool


def parse_options(argv: Sequence[str]) -> Options:
    """Raises: ConfigError for unknown flags."""
    found = _parser().parse_args(list(argv))
    return Options(
        source=found.source,
        revision=found.revision,
        cache_dir=found.cache_dir,
        output=found.output_path,
        parts=tuple(dict.fromkeys(found.only)) if found.only else None,
        dtype=found.dtype,
        sha256=found.sha256,
        verify=found.verify,
    )


def _parser() -> Parser:
    parser = Parser(_DESCRIPTION)
    parser.add_argument("source", help="folder of a pipeline, a transformer or a VAE, or its name on Hugging Face")
    parser.add_argument("--revision", help="branch, tag or commit on Hugging Face")
    parser.add_argument(
        "--cache_dir", type=possible_path, metavar="DIR", help="where downloads go; default: as Hugging Face's"
    )
    add_output(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts instead of all that the source has")
    parser.add_argument("--sha256", action="store_true", help="SHA-256 of all weight files in conversion.json as well")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="open both with diffusers and this framework; compare every tensor, and a forward pass",
    )
    return parser
