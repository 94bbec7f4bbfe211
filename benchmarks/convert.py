"""Conversion of a full-size checkpoint, in both directions, against copying its file: seconds and memory.

    python benchmarks/convert.py                      # 2B: 3.5 GB of random fp16 weights; needs 14 GB below --folder
    python benchmarks/convert.py --model 5b           # 11 GB of bf16 weights; needs 45 GB
    python benchmarks/convert.py --layers 6           # a smaller one
    python benchmarks/convert.py --verify             # once more, with the comparison against diffusers

Copy, conversion to diffusers and conversion back take turns, `--rounds` times, with their input in the page cache; the
medians count. All three end with the bytes on the disk. Conversions also hash what they read and what they write.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.released import COGVIDEOX_2B, FAMILIES

ROOT = Path(__file__).resolve().parents[1]
SAT2HF = ROOT / "tools" / "convert_weight_sat2hf.py"
HF2SAT = ROOT / "tools" / "convert_weight_hf2sat.py"
MODELS = {family.key: family for family in FAMILIES}
POLL_S = 0.02
NOISE_SIZE = 2**24  # values drawn once; every tensor is a window into them, because drawing 1.7e9 takes a minute


@dataclass(frozen=True)
class Cost:
    """Of one command or action. CPU seconds say more than seconds on a machine that others use."""

    seconds: float
    cpu_seconds: float
    anonymous_gb: float = 0.0  # peak RssAnon: memory that is not a mapped file


@dataclass(frozen=True)
class Job:
    """What is converted: a model's YAML with fewer layers, perhaps."""

    yaml: Path
    dtype: torch.dtype
    layers: int

    @property
    def override(self) -> str:
        return f"model.network_config.params.num_layers={self.layers}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to put the files; default: the temporary folder")
    parser.add_argument("--model", choices=MODELS, default="2b")
    parser.add_argument("--layers", type=int, help="default: as released")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--verify", action="store_true", help="also time --verify once, in both directions")
    options = parser.parse_args()
    family = MODELS[options.model]
    dtype = torch.float16 if family is COGVIDEOX_2B else torch.bfloat16
    job = Job(ROOT / family.yaml, dtype, options.layers or family.num_layers)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        measure(Path(scratch), job, options.rounds, options.verify)


def measure(folder: Path, job: Job, rounds: int, with_verify: bool) -> None:
    """Build the checkpoint, run everything, print a table."""
    source = build_checkpoint(folder / "transformer", job)
    size = source.stat().st_size / 1e9
    kind = str(job.dtype).removeprefix("torch.")
    print(
        f"{job.yaml.stem}: {size:.2f} GB of random {kind} weights, {job.layers} layers; {os.cpu_count()} cores, "
        f"torch {torch.__version__}"
    )
    there = [str(SAT2HF), "--only", "transformer", "--base", str(job.yaml), job.override]
    there += ["--checkpoint", str(folder / "transformer"), "--output_path", str(folder / "hf")]
    back = [str(HF2SAT), str(folder / "hf"), "--output_path", str(folder / "sat")]
    costs: dict[str, list[Cost]] = {"copy and fsync": [], "to diffusers": [], "to SAT": []}
    for _ in range(rounds):
        shutil.rmtree(folder / "hf", ignore_errors=True)
        costs["copy and fsync"].append(time_copy(source, folder / "copy.pt"))
        costs["to diffusers"].append(run_command(there))
        read_all(folder / "hf")  # written files leave the page cache
        costs["to SAT"].append(run_command(back))
        read_all(source.parent)
        shutil.rmtree(folder / "sat")
    print_table({name: median(found) for name, found in costs.items()}, size)
    if with_verify:
        shutil.rmtree(folder / "hf")
        for name, command in (("to diffusers", there), ("to SAT", back)):
            cost = run_command([*command, "--verify"], quiet=False)
            print(f"{name} and verify: {cost.seconds:.1f} s, {cost.anonymous_gb:.2f} GB anonymous")


def print_table(costs: dict[str, Cost], size: float) -> None:
    """A command's work is what it takes beyond interpreter and imports."""
    copy = costs["copy and fsync"]
    print("                      seconds   its work   CPU of it   to copy   anonymous GB")
    for name, cost in costs.items():
        script = {"to diffusers": SAT2HF, "to SAT": HF2SAT}.get(name)
        start = run_command([str(script), "--no_such_flag"], expected_status=2) if script else Cost(0, 0)
        work, cpu = cost.seconds - start.seconds, cost.cpu_seconds - start.cpu_seconds
        ratio = work / copy.seconds
        print(f"{name:18} {cost.seconds:10.2f} {work:10.2f} {cpu:11.2f} {ratio:9.2f} {cost.anonymous_gb:14.2f}")
    print(f"copying: {size / copy.seconds:.2f} GB/s")


def median(costs: list[Cost]) -> Cost:
    """Medians of times, the peak of memory."""
    seconds, cpu = (
        statistics.median(values) for values in zip(*((c.seconds, c.cpu_seconds) for c in costs), strict=True)
    )
    return Cost(seconds, cpu, max(cost.anonymous_gb for cost in costs))


def build_checkpoint(folder: Path, job: Job) -> Path:
    """A published-style checkpoint with weights of a trained model's magnitude; its file."""
    from cogvideox.config.load import load_config
    from cogvideox.config.targets import instantiate
    from cogvideox.weights.safetensors_stream import Entry
    from cogvideox.weights.sat_folder import STATES_FILE
    from cogvideox.weights.sat_stream import stream_states

    node = load_config([str(job.yaml)], [job.override], "sample", partial=True).model.network_config
    with torch.device("meta"):
        names = instantiate(node, dtype=job.dtype).state_dict()
    entries = [Entry(f"model.diffusion_model.{name}", tuple(meta.shape), job.dtype) for name, meta in names.items()]
    (folder / "1").mkdir(parents=True)
    stream_states(folder / "1", 1, entries, fill_all(entries, node), {})
    (folder / "latest").write_text("1")
    return folder / "1" / STATES_FILE


def fill_all(entries: list, node: dict) -> Iterator[tuple[str, Tensor]]:
    noise = torch.randn(NOISE_SIZE, generator=torch.Generator().manual_seed(0))
    for number, entry in enumerate(entries):
        if entry.name.endswith("pos_embedding") and "SinCos" in json.dumps(node):
            yield entry.name, position_table(node)
        else:
            yield entry.name, fill(entry.name, entry.shape, noise.to(entry.dtype), number)


def position_table(node: dict) -> Tensor:
    """The table that a 2B checkpoint stores."""
    from cogvideox.transformer.position_tables import sincos_3d

    params = node["params"]
    scale = params["modules"]["pos_embed_config"]["params"]
    grid = ((params["num_frames"] - 1) // 4 + 1, params["latent_height"] // 2, params["latent_width"] // 2)
    interpolation = (1.0, scale["height_interpolation"], scale["width_interpolation"])
    video = sincos_3d(params["hidden_size"], grid, interpolation).flatten(0, 2)
    return torch.cat([torch.zeros(params["text_length"], video.shape[1]), video])[None]


def fill(name: str, shape: tuple[int, ...], noise: Tensor, start: int) -> Tensor:
    """Values for one tensor: matrices of 1/sqrt(inputs), norms around one."""
    count = torch.Size(shape).numel()
    repeats = -(-(count + start) // len(noise))
    values = noise.repeat(repeats)[start : start + count].reshape(shape)
    if len(shape) >= 2:
        return values / values[0].numel() ** 0.5
    return 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def read_all(folder: Path) -> None:
    """Bring every file of a folder into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(2**24):
                    pass


def time_copy(source: Path, target: Path) -> Cost:
    begin, cpu = time.perf_counter(), time.process_time()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    cost = Cost(time.perf_counter() - begin, time.process_time() - cpu)
    target.unlink()
    return cost


def run_command(words: list[str], *, quiet: bool = True, expected_status: int = 0) -> Cost:
    """Run a Python script, watching its memory. Leaves the program when it ends with another status."""
    begin, children = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    sink = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen([sys.executable, *words], stdout=sink, stderr=sink)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(POLL_S)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != expected_status:
        sys.exit(f"{' '.join(words)} ended with status {process.returncode}")
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
