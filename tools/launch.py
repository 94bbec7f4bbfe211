"""Run a program in several processes on this machine: python tools/launch.py PROCESSES PROGRAM.py [ARGUMENTS]

finetune_multi_gpus.sh and inference.sh use it in place of torchrun, see docs/interruptions.md.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox import stopping
from cogvideox.errors import EXIT_USER_ERROR, UserError
from cogvideox.parallel.launcher import run_processes


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2 or not argv[0].isdigit() or int(argv[0]) < 1:
        print("error: usage: python tools/launch.py PROCESSES PROGRAM.py [ARGUMENTS]", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        status = run_processes([sys.executable, *argv[1:]], int(argv[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    for each in stopping.SIGNALS:  # one that comes while Python ends must not change the status
        signal.signal(each, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
