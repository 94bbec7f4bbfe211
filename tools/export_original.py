"""Back to the original CogVideoX program: its YAML for a run or a converted model, and one whole weight file.

The original can't read this framework's YAML, and a checkpoint of adapters only leaves all other weights random there.
This writes model.yaml and inference.yaml in its names, with rank and alpha of the LoRA, and the transformer and the
adapters in one file. Weights that it can read as they are stay where they are.

    a LoRA run:
        python tools/export_original.py ckpts/lora-06-01-12-00 --output_path for_original
    the same with the LoRA added to the weights:
        python tools/export_original.py ckpts/lora-06-01-12-00 --merge_lora --output_path for_original
    a folder of convert_weight_hf2sat.py:
        python tools/export_original.py CogVideoX-2b-sat --output_path for_original
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.command_line import Parser, add_output
from cogvideox.conversion.model_card import card_of
from cogvideox.conversion.original_export.convert import MODEL_YAML, SAMPLING_YAML, export
from cogvideox.conversion.original_export.source import open_source
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    """Read, check, write. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    begin = time.perf_counter()
    parser = Parser(__doc__ or "")
    parser.add_argument("source", type=Path, help="run folder, folder of convert_weight_hf2sat.py, SAT folder or file")
    parser.add_argument("--iteration", metavar="N", help="of a run folder, instead of its latest (500, 500-ema)")
    parser.add_argument(
        "--base", nargs="+", default=[], metavar="YAML", help="YAML of the model and key=value; default: what is beside"
    )
    parser.add_argument("--merge_lora", action="store_true", help="add the LoRA to the weights (in float32)")
    add_output(parser)
    options = parser.parse_args(list(argv))
    files = [word for word in options.base if "=" not in word or os.path.isfile(word)]
    overrides = [word for word in options.base if word not in files]
    source = open_source(options.source, options.iteration, files, overrides)
    print(f"transformer: {source.facts.summary}, from {' on '.join(map(str, source.weights.files))}")
    lora = None if options.merge_lora else source.weights.lora
    card = card_of(source.checkpoint.path, source.facts, lora, kind="original", files=source.weights.files)
    output = options.output_path
    for note in export(source, output, card, merge=options.merge_lora, dtype=options.dtype):
        print(f"note: {note}")
    print(f"wrote {output} in {time.perf_counter() - begin:.1f} s")
    bases = shlex.join([str((output / name).resolve()) for name in (MODEL_YAML, SAMPLING_YAML)])
    print("next, in the original's folder sat/:")
    print(f"    WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 python sample_video.py --base {bases}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
