"""Add one or several LoRAs to a model's weights: the result is a plain SAT checkpoint, to sample, train on or convert.

An adapter is a run folder, a checkpoint, or a LoRA file of diffusers or ComfyUI; ranks may differ. A number behind
a colon is its strength (1, the default, is as trained; negative subtracts). The model is the one that the first
adapter was trained on, unless --base names another.

    one LoRA of a training run:
        python tools/merge_lora.py --adapter ckpts/lora-06-01-12-00 --output_path merged
    two, weaker:
        python tools/merge_lora.py --base CogVideoX-2b-sat/transformer --adapter ckpts/style:0.7 \\
            --adapter motion.safetensors:0.5 --output_path merged
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.command_line import Parser, add_output, positive, possible_path
from cogvideox.conversion.lora.base_model import note_other_file
from cogvideox.conversion.lora.merge import find_base, merge, read_adapter_and_strength
from cogvideox.conversion.next_steps import after_sat, show
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    """Read, check, write. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    begin = time.perf_counter()
    parser = Parser(__doc__ or "")
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="PATH[:STRENGTH]", help="repeat for several"
    )
    parser.add_argument("--base", type=possible_path, metavar="PATH", help="SAT checkpoint to add them to")
    parser.add_argument("--alpha", type=positive, help="lora_alpha of adapters whose file doesn't state it")
    add_output(parser)
    options = parser.parse_args(list(argv))
    adapters = [read_adapter_and_strength(text, options.alpha) for text in options.adapter]
    base = find_base(adapters, options.base)
    print(f"base: {base.facts.summary}, from {base.path}")
    for each in adapters:
        print(f"+ {each.strength:g} x {each.adapter.path}: {each.adapter.summary}")
        if each.adapter.has_model and each.adapter.path != base.path:
            print("note: that file's own model is left out; if training changed it too, merge it first, without --base")
        for note in note_other_file(each.adapter, base) if options.base is not None or len(adapters) > 1 else ():
            print(f"note: {note}")
    if not merge(base, adapters, options.output_path, options.dtype):
        print("nothing says how this model is configured: exporting it needs --base with its YAML")
    print(f"wrote {options.output_path} in {time.perf_counter() - begin:.1f} s")
    show(after_sat(options.output_path, base.facts, base.path))


if __name__ == "__main__":
    sys.exit(run_cli(main))
