"""The memory that training takes of a GPU, counted without one.

    python tools/memory.py --base configs/cogvideox_5b_lora.yaml configs/sft.yaml
    python tools/memory.py --base configs/cogvideox_5b.yaml configs/sft.yaml --gpus 8 data.max_num_frames=25
    python tools/memory.py --table

The program itself runs, on tensors without contents, and every tensor is counted while it lives. Neither weights nor
clips are needed; g++ is, once. Takes the files and words of train_video.py.

    --gpus N     one of N processes, with what ZeRO leaves to each
    --table      count all published models again, and write the tables of docs/memory.md and README.md, and what tests
    compare
                 with: tests/fake_cuda/figures.json (takes minutes)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.config.load import load_config, parse_cli
from cogvideox.errors import ConfigError, run_cli
from cogvideox.log import setup_logging

MOST_GPUS = 4096


def main(argv: Sequence[str]) -> None:
    if set(argv) & {"-h", "--help"}:
        print(__doc__)
        return
    setup_logging("ERROR")
    if "--table" in argv:
        if len(argv) > 1:
            raise ConfigError("--table takes no other words: it counts what configs/ holds")
        from simulated_cuda.table import write_tables

        write_tables()
        return
    gpus, words = take_gpus(list(argv))
    if not words:
        raise ConfigError(
            "give the files of a training run: python tools/memory.py --base configs/a.yaml [b.yaml ...] [key=value]"
        )
    command = parse_cli(words, "train")
    # Paths are not looked at, but a configuration without clips is none.
    overrides = ["args.train_data=[clips]", *command.overrides]
    config = load_config(command.base, overrides, "train", command.allow_unknown)
    from simulated_cuda.device import start

    start()
    from simulated_cuda.measure import measure_largest
    from simulated_cuda.report import report
    from simulated_cuda.run import Setting

    print(report(config, measure_largest(config, Setting(gpus=gpus)), gpus))


def take_gpus(words: list[str]) -> tuple[int, list[str]]:
    """`--gpus N` or `--gpus=N` out of the words. Raises: ConfigError for what is no number of GPUs."""
    given = [at for at, word in enumerate(words) if word == "--gpus" or word.startswith("--gpus=")]
    if not given:
        return 1, words
    at = given[-1]
    _, equals, value = words[at].partition("=")
    rest = at + 1
    if not equals:
        value, rest = " ".join(words[at + 1 : at + 2]), at + 2
    if not value.isdecimal() or not 1 <= int(value) <= MOST_GPUS:
        raise ConfigError(f"--gpus: {value!r} is no number of GPUs; give one from 1 to {MOST_GPUS}")
    return int(value), words[:at] + words[rest:]


if __name__ == "__main__":
    status = run_cli(main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # sys.exit would have torch end what is only half there
