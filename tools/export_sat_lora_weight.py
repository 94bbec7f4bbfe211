"""The LoRA of a SAT checkpoint as diffusers' pytorch_lora_weights.safetensors.

    python tools/export_sat_lora_weight.py --sat_pt_path ckpts/lora-06-01-12-00/1000/mp_rank_00_model_states.pt \\
        --lora_save_directory my_lora

The same as `tools/convert_lora.py ... --to diffusers`, under its old name and flags.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.command_line import Parser, positive, possible_path
from cogvideox.conversion.lora.convert import convert
from cogvideox.conversion.lora.source import open_adapter
from cogvideox.conversion.next_steps import after_diffusers, show
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    """Read, check, write. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    parser = Parser(__doc__ or "")
    parser.add_argument("--sat_pt_path", type=possible_path, required=True, help="file, iteration folder or run folder")
    parser.add_argument("--lora_save_directory", type=possible_path, required=True, help="new or empty folder")
    parser.add_argument("--alpha", type=positive, help="for files that don't state it; SAT's default is 1")
    options = parser.parse_args(list(argv))
    adapter = open_adapter(options.sat_pt_path, alpha=options.alpha)
    print(f"{adapter.path}: {adapter.summary}")
    for note in convert(adapter, "diffusers", options.lora_save_directory, None):
        print(f"note: {note}")
    print(f"wrote {options.lora_save_directory}")
    show(after_diffusers(options.lora_save_directory))


if __name__ == "__main__":
    sys.exit(run_cli(main))
