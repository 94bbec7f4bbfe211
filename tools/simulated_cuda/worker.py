"""A process of its own that counts one configuration after the other.

    python tools/simulated_cuda/worker.py < jobs.json > results.jsonl

Jobs are a JSON list, each {"name", "kind", "files", "overrides", "gpus"}; the answer to each is a line with its name.
kind: memory; work, which is memory with preview videos, and work; or placement. One number of GPUs in a process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tools")]


def main() -> None:
    from simulated_cuda.device import start

    jobs = json.loads(os.environ[JOBS]) if JOBS in os.environ else json.load(sys.stdin)
    os.environ[JOBS] = json.dumps(jobs)  # starting again must not read them again
    start()
    quiet()
    for job in jobs:
        print(json.dumps({"name": job["name"], **run_job(job)}), flush=True)


JOBS = "FAKE_CUDA_JOBS"


def quiet() -> None:
    """Libraries' notices go nowhere: only answers are written."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one job."""
    from cogvideox.config.load import load_config

    from simulated_cuda import measure, placement
    from simulated_cuda.run import Setting

    files = [str(ROOT / "configs" / f"{file}.yaml") for file in job["files"]]
    config = load_config(files, ["args.train_data=[clips]", *job.get("overrides", ())], "train")
    setting = Setting(gpus=job.get("gpus", 1))
    if job["kind"] == "placement":
        found = placement.check_placement(config)
        waits = [[*wait, count] for wait, count in sorted(found.waits.items())]
        return {"waits": waits, "without_gradient": found.without_gradient, "elsewhere": found.elsewhere}
    if job["kind"] == "memory":
        return {"memory": measure.measure(config, replace(setting, preview=False)).as_json()}
    memory, work = measure.measure_with_work(config, setting)
    return {"memory": memory.as_json(), "launches": work.launches, "touched": work.touched}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # torch would end what is only half there
