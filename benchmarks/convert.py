"""Conversion of a 2B-size checkpoint to diffusers against copying its file: seconds and memory.

    python benchmarks/convert.py                   # 3.4 GB of random fp16 weights; needs 11 GB of disk below --folder
    python benchmarks/convert.py --verify          # once more, with the comparison against diffusers (8 GB of memory)
    python benchmarks/convert.py --layers 4        # a smaller one

Each is run in turn, `--rounds` times, with the file in the page cache; the medians count. Both write to the disk:
the copy ends with fsync as the conversion does. The conversion also hashes what it reads and what it writes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "sat"))

CONVERTER = ROOT / "tools" / "convert_weight_sat2hf.py"
MODEL_YAML = ROOT / "configs" / "cogvideox_2b.yaml"
POLL_S = 0.02
NOISE_SIZE = 2**24  # values drawn once; every tensor is a window into them, because drawing 1.7e9 takes a minute


@dataclass(frozen=True)
class Cost:
    """Of one command or action. CPU seconds say more than seconds on a machine that others use."""

    seconds: float
    cpu_seconds: float
    anonymous_gb: float = 0.0  # peak RssAnon: memory that is not a mapped file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to put the files; default: the temporary folder"
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--verify", action="store_true", help="also time --verify once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        measure(Path(scratch), options.layers, options.rounds, options.verify)


def measure(folder: Path, layers: int, rounds: int, with_verify: bool) -> None:
    """Build the checkpoint, run everything, print a table."""
    source = build_checkpoint(folder / "transformer", layers)
    size = source.stat().st_size / 1e9
    print(
        f"checkpoint: {size:.2f} GB of random fp16 weights, {layers} layers; "
        f"{os.cpu_count()} cores, torch {torch.__version__}"
    )
    copies, conversions = [], []
    for _ in range(rounds):
        copies.append(time_copy(source, folder / "copy.pt"))
        conversions.append(time_conversion(folder / "transformer", folder / "out", layers))
    copy, whole, start = median(copies), median(conversions), time_start()
    work = Cost(whole.seconds - start.seconds, whole.cpu_seconds - start.cpu_seconds, whole.anonymous_gb)
    print("                            seconds   CPU seconds   GB/s   anonymous GB")
    for name, cost in (("copy and fsync", copy), ("convert, its work", work), ("convert, whole command", whole)):
        rate = size / cost.seconds
        print(f"{name:26} {cost.seconds:8.1f} {cost.cpu_seconds:13.1f} {rate:6.2f} {cost.anonymous_gb:14.2f}")
    print(f"conversion / copy: {work.seconds / copy.seconds:.2f}")
    if with_verify:
        cost = time_conversion(folder / "transformer", folder / "out", layers, "--verify", quiet=False)
        print(
            f"{'convert and verify':26} {cost.seconds:8.1f} {cost.cpu_seconds:13.1f} {'':6} {cost.anonymous_gb:14.2f}"
        )


def median(costs: list[Cost]) -> Cost:
    """Medians of times, the peak of memory."""
    seconds, cpu = (
        statistics.median(values) for values in zip(*((c.seconds, c.cpu_seconds) for c in costs), strict=True)
    )
    return Cost(seconds, cpu, max(cost.anonymous_gb for cost in costs))


def build_checkpoint(folder: Path, layers: int) -> Path:
    """A published-style checkpoint (2B sizes, fp16) with weights of a trained model's magnitude; its file."""
    from cogvideox.config.load import load_config
    from cogvideox.config.targets import instantiate
    from cogvideox.weights.sat_folder import STATES_FILE

    override = f"model.network_config.params.num_layers={layers}"
    node = load_config([str(MODEL_YAML)], [override], "sample", partial=True).model.network_config
    with torch.device("meta"):
        names = instantiate(node, dtype=torch.float16).state_dict()
    noise = torch.randn(NOISE_SIZE, generator=torch.Generator().manual_seed(0)).half()
    table = position_table(node)
    file = folder / "1" / STATES_FILE
    file.parent.mkdir(parents=True)
    state = {f"model.diffusion_model.{name}": fill(name, meta, noise, table) for name, meta in names.items()}
    torch.save({"module": state}, file)
    (folder / "latest").write_text("1")
    return file


def position_table(node: dict) -> Tensor:
    """The table that a 2B checkpoint stores."""
    from cogvideox.transformer.positions import sincos_3d

    params = node["params"]
    scale = params["modules"]["pos_embed_config"]["params"]
    grid = ((params["num_frames"] - 1) // 4 + 1, params["latent_height"] // 2, params["latent_width"] // 2)
    interpolation = (1.0, scale["height_interpolation"], scale["width_interpolation"])
    video = sincos_3d(params["hidden_size"], grid, interpolation).flatten(0, 2)
    return torch.cat([torch.zeros(params["text_length"], video.shape[1]), video])[None].half()


def fill(name: str, meta: Tensor, noise: Tensor, table: Tensor) -> Tensor:
    """Values for one tensor: matrices of 1/sqrt(inputs), norms around one, the position table as it is."""
    if name.endswith("pos_embedding"):
        assert table.shape == meta.shape, f"{name} is {meta.shape}"
        return table
    start = hash(name) % 1000  # differs between tensors; which numbers they are does not matter
    repeats = -(-(meta.numel() + start) // len(noise))
    values = noise.repeat(repeats)[start : start + meta.numel()].reshape(meta.shape)
    if meta.ndim >= 2:
        return values / meta[0].numel() ** 0.5
    return 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def time_copy(source: Path, target: Path) -> Cost:
    begin, cpu = time.perf_counter(), time.process_time()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    cost = Cost(time.perf_counter() - begin, time.process_time() - cpu)
    target.unlink()
    return cost


def time_start() -> Cost:
    """The command until it knows that it has nothing to do: interpreter and imports."""
    return run_command([sys.executable, str(CONVERTER), "--output_path", "none"], expected_status=2)


def time_conversion(source: Path, target: Path, layers: int, *flags: str, quiet: bool = True) -> Cost:
    command = [sys.executable, str(CONVERTER), "--only", "transformer"]
    command += ["--base", str(MODEL_YAML), f"model.network_config.params.num_layers={layers}"]
    cost = run_command([*command, "--checkpoint", str(source), "--output_path", str(target), *flags], quiet=quiet)
    shutil.rmtree(target)
    return cost


def run_command(command: list[str], *, quiet: bool = True, expected_status: int = 0) -> Cost:
    """Run it, watching its memory. Leaves the program when it ends with another status."""
    begin, children = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL if quiet else None, stderr=subprocess.DEVNULL if quiet else None
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(POLL_S)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != expected_status:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    return Cost(seconds, cpu, peak / 1e9)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
