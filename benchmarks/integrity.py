"""What it costs to check a checkpoint: loading with and without, and saving with hashes and as torch.save does.

    python benchmarks/integrity.py                   # 2 GB of bf16 below the system's temporary folder
    python benchmarks/integrity.py --gb 11 --folder /data/tmp --rounds 3

Loading copies every tensor from the mapped file, as `key_rules.load_module` does, in turns with the same beside
`FileChecks`, which hashes the file meanwhile, and with the look for NaN where the weights were copied to. Files are in
the page cache: reading a disk takes longer and hides more. Each figure is the median of the rounds, which take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.weights.atomic import fsync_path
from cogvideox.weights.hashes import FAST, hash_of
from cogvideox.weights.integrity import FileChecks
from cogvideox.weights.safetensors_stream import finite_flag
from cogvideox.weights.sat_folder import STATES_FILE, read_checkpoint, write_checkpoint
from cogvideox.weights.torch_save import save_hashed

SHAPE = (4096, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go")
    options = parser.parse_args()
    count = max(1, round(options.gb * 1e9 / (2 * SHAPE[0] * SHAPE[1])))
    state = {f"w{index}": torch.randn(SHAPE).bfloat16() for index in range(count)}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_checkpoint(folder, 1, state, {})
        targets = {name: torch.zeros_like(value) for name, value in state.items()}
        file = folder / "1" / STATES_FILE
        actions: dict[str, Callable[[], object]] = {
            "load": lambda: load(folder, targets, check=False, look=False),
            "load, look for NaN": lambda: load(folder, targets, check=False, look=True),
            "load and check": lambda: load(folder, targets, check=True, look=False),
            "load, look for NaN and check": lambda: load(folder, targets, check=True, look=True),
            "hash alone": lambda: hash_of(file, FAST),
            "torch.save and fsync": lambda: synced(folder / "a.pt", lambda path: torch.save(state, path)),
            "save with hash and fsync": lambda: synced(folder / "a.pt", lambda path: save_hashed(path, state)),
        }
        taken = defaultdict(list)
        for _ in range(options.rounds):
            for what, action in actions.items():
                hash_of(file, FAST)  # into the page cache again
                wall, processor = time.perf_counter(), time.process_time()
                action()
                taken[what].append((time.perf_counter() - wall, time.process_time() - processor))
    print(f"{file.name}: {count * 2 * SHAPE[0] * SHAPE[1] / 1e9:.2f} GB, {os.cpu_count()} processors")
    for what, times in taken.items():
        wall, processor = (statistics.median(each) for each in zip(*times, strict=True))
        print(
            f"{what:32}{wall:8.2f} s{processor:8.2f} processor seconds{min(wall for wall, _ in times):8.2f} s at best"
        )


def load(folder: Path, targets: dict[str, Tensor], *, check: bool, look: bool) -> None:
    """Copy a checkpoint's tensors, beside or without its check."""
    file = folder / "1" / STATES_FILE
    with FileChecks([file]) if check else nullcontext() as checks:
        module = read_checkpoint(folder).module
        for name, target in targets.items():
            target.copy_(module[name])
        if look:
            assert torch.stack([finite_flag(target) for target in targets.values()]).all()
        if checks is not None:
            checks.wait()


def synced(path: Path, write: Callable[[Path], object]) -> None:
    """Write and bring to the disk."""
    write(path)
    fsync_path(path)
    path.unlink()


if __name__ == "__main__":
    main()
