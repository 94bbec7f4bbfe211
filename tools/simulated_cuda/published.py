"""The published models and methods that the tables show, and the jobs that count them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError
from cogvideox.released import FAMILIES, Family

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "tests" / "fake_cuda" / "figures.json"
WORKER = Path(__file__).with_name("worker.py")


MODELS = {family.key: family for family in FAMILIES}  # the figures are kept under these keys
METHODS = ("lora", "full")
# As it is shipped, and what else the tables have: (GPUs, ZeRO stage).
SHIPPED = (1, 2)
LAYOUTS = (SHIPPED, (1, 0), (2, 0), (2, 2), (8, 2))

SMALL = [
    "model.network_config.params.num_layers=2",
    "model.first_stage_config.params.num_res_blocks=1",
    "data.video_size=[64,96]",
    "data.max_num_frames=9",
]


def key(gpus: int, stage: int) -> str:
    """Of a layout in the file of figures."""
    return f"{gpus} GPU, ZeRO {stage}"


def title(model: Family) -> str:
    """A model and the clip of its training, for readers."""
    clip = model.generation.clip
    return f"{model.short_name}, {clip.frames} x {clip.height} x {clip.width}"


def files(model: Family, method: str) -> list[str]:
    """The shipped files, as names in configs/ without their ending. method: lora or full."""
    return [
        Path(name).stem
        for name in (model.lora_yaml if method == "lora" else model.yaml, model.generation.training_yaml)
    ]


def job(model: str, method: str, layout: tuple[int, int]) -> dict[str, Any]:
    """Memory, and for the shipped layout the work as well."""
    gpus, stage = layout
    return {
        "name": f"{model} {method}/{key(*layout)}",
        "kind": "work" if layout == SHIPPED else "memory",
        "files": files(MODELS[model], method),
        "overrides": [f"deepspeed.zero_optimization.stage={stage}"],
        "gpus": gpus,
    }


def placement_job(model: str, method: str) -> dict[str, Any]:
    """A look for device mistakes with two layers and a small clip."""
    name = f"{model} {method}/placement"
    return {"name": name, "kind": "placement", "files": files(MODELS[model], method), "overrides": SMALL}


def small_job(model: str, method: str) -> dict[str, Any]:
    """Memory and work with two layers and a small clip: seconds, for a change that all sizes would show."""
    name = f"{model} {method}/small"
    return {"name": name, "kind": "work", "files": files(MODELS[model], method), "overrides": SMALL}


def count(
    jobs: Sequence[dict[str, Any]], processes: int | None = None, environment: Mapping[str, str] = os.environ
) -> dict[str, dict[str, Any]]:
    """Answers by name. Jobs of one number of GPUs share processes, as many as there are cores.

    Raises: UserError when one ends without its answers.
    """
    processes = processes or max(1, len(os.sched_getaffinity(0)))
    parts = []
    for gpus in sorted({each.get("gpus", 1) for each in jobs}):
        own = [each for each in jobs if each.get("gpus", 1) == gpus]
        parts += [own[at::processes] for at in range(processes) if own[at::processes]]
    with ThreadPoolExecutor(processes) as pool:
        return {
            name: answer
            for part in pool.map(lambda part: _run(part, environment), parts)
            for name, answer in part.items()
        }


def _run(jobs: list[dict[str, Any]], environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    own = {**environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER)], input=json.dumps(jobs), capture_output=True, text=True, env=own
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(answers) != len(jobs):
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        failed = jobs[len(answers)]["name"] if len(answers) < len(jobs) else "?"
        raise UserError(f"counting {failed} failed: {last}\n{done.stderr[-4000:]}")
    return {answer.pop("name"): answer for answer in answers}
