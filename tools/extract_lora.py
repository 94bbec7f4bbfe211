"""Make a LoRA out of a full fine-tune: the adapter of a given rank that comes nearest to what training changed.

Prints, for each kind of layer, how far the adapter is from the full change, and what share of the change lies in
layers that LoRA does not adapt (MLP, modulation ...). The result is a SAT folder: sample with it, or convert it.

    python tools/extract_lora.py ckpts/sft-06-01-12-00 --rank 64 --output_path my_lora
    python tools/extract_lora.py finetuned.pt --base CogVideoX-2b-sat/transformer --rank 128 --output_path my_lora
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.command_line import Parser, possible_path
from cogvideox.conversion.lora.extract import extract, open_pair
from cogvideox.conversion.next_steps import after_sat, show
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    """Read, check, decompose, write. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    begin = time.perf_counter()
    parser = Parser(__doc__ or "")
    parser.add_argument(
        "finetuned", type=possible_path, help="run folder, iteration folder or file of the full fine-tune"
    )
    parser.add_argument("--iteration", metavar="N", help="of a run folder, instead of its latest")
    parser.add_argument(
        "--base", type=possible_path, metavar="PATH", help="what it was trained from; default: what it records"
    )
    parser.add_argument("--rank", type=int, required=True, help="of the adapter; its alpha is the same, so scale is 1")
    parser.add_argument(
        "--fast", action="store_true", help="ten times quicker; the error may be 1 %% above the smallest possible"
    )
    parser.add_argument("--output_path", type=possible_path, required=True, metavar="DIR", help="new or empty folder")
    options = parser.parse_args(list(argv))
    finetuned, base = open_pair(options.finetuned, options.base, options.iteration)
    print(f"base: {base.facts.summary}, from {base.path}")
    report = extract(finetuned, base, options.rank, options.output_path, fast=options.fast)
    for line in report.lines():
        print(line)
    print(f"wrote {options.output_path} in {time.perf_counter() - begin:.1f} s")
    show(after_sat(options.output_path, base.facts, base.path, lora=True))


if __name__ == "__main__":
    sys.exit(run_cli(main))
