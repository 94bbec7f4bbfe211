"""Run by a test: prints by how many KiB anonymous memory grows at most, in either direction.

    python memory_of_conversion.py <folder with small-hf/ and large-hf/>

The small model goes first, so that imports are not what is measured.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from convert_weight_hf2sat import main as hf2sat
from convert_weight_sat2hf import main as sat2hf


def main(folder: Path) -> None:
    for name in ("small", "large"):
        hf, sat, again = (str(folder / f"{name}-{kind}") for kind in ("hf", "sat", "again"))
        there = growth(partial(hf2sat, [hf, "--output_path", sat]))
        words = ["--checkpoint", f"{sat}/transformer", "--base", f"{sat}/model.yaml", "--only", "transformer"]
        back = growth(partial(sat2hf, [*words, "--output_path", again]))
    print("peaks:", there, back)


def growth(action: Callable[[], object]) -> int:
    before, peak, stop = anonymous_kib(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, anonymous_kib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    action()
    stop.set()
    watcher.join()
    return peak - before


def anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
