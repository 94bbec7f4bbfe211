"""Put the shards of a DeepSpeed ZeRO checkpoint (stages 1, 2, 3) together into one SAT checkpoint, on any machine.

What was trained comes from the fp32 masters in zero_pp_rank_*_optim_states.pt, so nothing is lost to the 16 bits of
training; what was frozen is as stored. Neither the ranks nor DeepSpeed are needed, and memory stays small. The run's
training_config.yaml, if it has one, comes along, so that the other tools know what they have before them.

    python tools/consolidate_zero.py ckpts/old-run --output_path consolidated            # what `latest` names
    python tools/consolidate_zero.py ckpts/old-run/2000 --output_path consolidated --bf16
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.command_line import Parser, add_output, possible_path
from cogvideox.conversion.manifest import write_manifest
from cogvideox.conversion.next_steps import after_sat, show
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging
from cogvideox.weights.atomic import new_folder
from cogvideox.weights.run_config import trained_config
from cogvideox.weights.safetensors_stream import Entry
from cogvideox.weights.sat_stream import write_sat_folder
from cogvideox.weights.zero_shards import ZeroCheckpoint, read_zero


def main(argv: Sequence[str]) -> None:
    """Read, check, write. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    begin = time.perf_counter()
    parser = Parser(__doc__ or "")
    parser.add_argument(
        "checkpoint", type=possible_path, help="run folder with `latest`, or one of its iteration folders"
    )
    parser.add_argument("--tag", help="iteration folder of a run folder, instead of the latest")
    add_output(parser, default="float32 for what was trained, the rest as stored")
    options = parser.parse_args(list(argv))
    shards = read_zero(options.checkpoint, options.tag)
    print(f"ZeRO stage {shards.stage}, {shards.num_ranks} ranks, {len(shards)} tensors, from {shards.folder}")
    consolidate(shards, options.output_path, options.dtype)
    print(f"wrote {options.output_path} in {time.perf_counter() - begin:.1f} s")
    show(after_sat(options.output_path, None))


def consolidate(shards: ZeroCheckpoint, output: Path, dtype: torch.dtype | None) -> None:
    """Write the whole module into `output`, a SAT folder with `latest`; whole or not at all.

    Raises: CheckpointError for a folder that is not empty, no space, or values that are not finite.
    """
    entries = [
        Entry(name, tuple(shape), dtype if dtype is not None and stored.is_floating_point else stored)
        for name, (shape, stored) in shards.shapes.items()
    ]
    with new_folder(output, sum(entry.num_bytes for entry in entries)) as partial:
        tensors = ((entry.name, shards[entry.name]) for entry in entries)
        write_sat_folder(partial, shards.iteration, entries, tensors, shards.extra)
        config = trained_config(shards.files[0])
        if config is not None:
            shutil.copyfile(config, partial / "training_config.yaml")
        write_manifest(partial, shards.files, {"zero_stage": shards.stage, "ranks": shards.num_ranks})


if __name__ == "__main__":
    sys.exit(run_cli(main))
