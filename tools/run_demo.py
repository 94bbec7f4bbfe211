"""The main job on the demo family: check, fill a cache, train a LoRA from it, evaluate and sample, export, summary.

    python tools/run_demo.py [--processes N] [--output runs/demo] [key=value ...]

`finetune_single_gpu.sh` without arguments runs this. Overrides go to the training, e.g. args.train_iters=20.
Each step is the command that a user would type, and is printed as such.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tools")]

from cogvideox.parallel.launcher import run_processes  # noqa: E402

CONFIGS = ["configs/demo_lora.yaml", "configs/demo_sft.yaml"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="processes of the training")
    parser.add_argument("--output", default="runs/demo", help="where run folders go, relative to the repository")
    parser.add_argument("overrides", nargs="*", help="key=value for the training")
    options = parser.parse_args(argv)
    os.chdir(ROOT)
    try:
        run_demo(options.processes, options.output, options.overrides)
    except subprocess.CalledProcessError as error:
        print(f"\nstopped: this step failed with status {error.returncode}", file=sys.stderr)
        return int(error.returncode)
    return 0


def run_demo(processes: int, output: str, overrides: Sequence[str]) -> None:
    """All steps. Raises: CalledProcessError from the first one that fails."""
    seconds: dict[str, float] = {}

    def step(name: str, *command: str, count: int = 1) -> None:
        launcher = ["tools/launch.py", str(count)] if count > 1 else []
        print(f"\n==> {name}\n    {shlex.join([*launcher, *command])}", flush=True)
        begin = time.monotonic()
        # Not subprocess.run: on Ctrl-C it would kill a training that is saving.
        status = run_processes([sys.executable, *command], count)
        if status:
            raise subprocess.CalledProcessError(status, command)
        seconds[name] = time.monotonic() - begin

    train = ["sat/train_video.py", "--base", *CONFIGS, f"args.save={output}", *overrides]
    step("check the configuration", *train, "--check")
    train.append(f"args.cache={output}_cache")
    step("store latents and text states", "sat/cache_dataset.py", *train[1:], count=processes)
    before = set(_finished_runs(output))
    step("train, evaluating and sampling before and after", *train, count=processes)
    run = max(set(_finished_runs(output)) - before, key=lambda path: path.stat().st_mtime)
    exported = run / "diffusers"
    convert = ["tools/convert_weight_sat2hf.py", "--checkpoint", str(run)]
    step("export to diffusers and verify", *convert, "--output_path", str(exported), "--verify")
    from demo_recipe.summary import before_after, summary_text

    sheet = before_after(run)
    print(summary_text(run, exported, sheet, seconds))


def _finished_runs(output: str) -> list[Path]:
    return [summary.parent for summary in Path(output).glob("*/summary.json")]


if __name__ == "__main__":
    sys.exit(main())
