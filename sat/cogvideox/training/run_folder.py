"""The folder of a run: `<save>/<experiment_name>-MM-DD-HH-MM/`, and finding one to resume.

training_config.yaml   the configuration in force      model_config.json   its model section, for tools
<iteration>/           checkpoints (weights.sat_folder) latest              the newest whole one
metrics.jsonl, tensorboard/, samples/, summary.json
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

from cogvideox.config.schema import Config
from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import check_writable
from cogvideox.weights.run_config import run_config_name
from cogvideox.weights.sat_folder import find_states_file

STATE_FOLDER = "training_state"


def check_save_folder(save: str) -> None:
    """Refuse a place without permission or space before anything slow happens; writes nothing.

    Raises:
        CheckpointError: says which folder and why.
    """
    check_writable(Path(save).expanduser(), 0)


def make_run_folder(save: str, experiment_name: str) -> Path:
    """A new folder of its own: runs that start in the same minute get -2, -3, ... behind the time.

    Raises:
        CheckpointError: the folder can't be made.
    """
    stem = Path(save).expanduser() / f"{experiment_name}-{datetime.now():%m-%d-%H-%M}"
    folder, number = stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = stem.with_name(f"{stem.name}-{number}")
        except OSError as error:
            raise CheckpointError(f"args.save: cannot make {folder}: {error.strerror}") from error


def write_config(folder: Path, config: Config, iteration: int = 0) -> None:
    """Leave the configuration beside the checkpoints. A resumed run keeps the first one and adds its own."""
    suffix = f"-resumed-at-{iteration}" if iteration else ""
    (folder / run_config_name(iteration)).write_text(config.resolved_yaml, encoding="utf-8")
    model = json.dumps(dataclasses.asdict(config.model), indent=2)
    (folder / f"model_config{suffix}.json").write_text(model + "\n", encoding="utf-8")


def newest_config(folder: Path) -> Path | None:
    """The configuration that the run was last started with; None when the folder holds none."""
    return max(folder.glob("training_config*.yaml"), key=lambda file: file.stat().st_mtime_ns, default=None)


def find_resume(resume: str, save: str, experiment_name: str) -> Path:
    """The iteration folder that `args.resume` means.

    resume: "latest" (newest run of this experiment under `save`), a run folder, or an iteration folder.

    Raises:
        CheckpointError: there is none, or it holds weights only.
    """
    if resume == "latest":
        runs = _runs(Path(save).expanduser(), experiment_name)
        if not runs:
            raise CheckpointError(
                f"args.resume: latest, but {save} holds no run of {experiment_name!r} with a checkpoint; start without "
                "args.resume, or give the path of a run folder"
            )
        resume = str(runs[-1])
    try:
        folder = find_states_file(resume).parent
    except CheckpointError as error:
        raise CheckpointError(f"args.resume: {error}") from error
    if not (folder / STATE_FOLDER).is_dir():
        raise CheckpointError(
            f"args.resume: {folder} holds weights but no {STATE_FOLDER}/ (optimizer, data position); to start a new "
            "run from these weights give them as args.load"
        )
    return folder


def _runs(save: Path, experiment_name: str) -> list[Path]:
    """Run folders with a whole checkpoint, oldest first by the time of their `latest`."""
    found = [path.parent for path in save.glob(f"{experiment_name}-*/latest")]
    return sorted(found, key=lambda run: (run / "latest").stat().st_mtime_ns)
