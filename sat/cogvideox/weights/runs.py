"""Run folders: which experiment they belong to, which is the newest, and which of their checkpoints goes on. No torch.

<save>/<experiment>-MM-DD-HH-MM[-n]/     run.json says whose it is; without it (older runs) the name does
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cogvideox.errors import CheckpointError
from cogvideox.log import get_logger
from cogvideox.user_files import shown, shown_path
from cogvideox.weights.atomic import write_text_atomically

RECORD_FILE = "run.json"
STATE_FOLDER = "training_state"  # beside the weights: what a run needs to go on
LATEST = "latest"  # the file in a run folder, and the word for the newest run
_WEIGHTS = "mp_rank_*_model_states.*"
_CONFIGS = "training_config*.yaml"
_OLD_NAME = re.compile(  # month, day, hour, minute; and 2 or more for another run of the same minute
    r"(?P<experiment>.+?)-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])-(?:[01]\d|2[0-3])-[0-5]\d(?:-(?:[2-9]|[1-9]\d+))?",
    re.DOTALL,
)
_log = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """A run folder. experiment: empty when nothing says; last_start: when the run was started or resumed last, in
    seconds since 1970."""

    folder: Path
    experiment: str
    last_start: float
    is_original: bool = True  # not a copy under another name


def record_start(folder: Path, experiment: str, step: int, owner: str, branched_from: Path | None = None) -> None:
    """Write into the run's record that it starts, or goes on, at this step.

    owner: which process on which host. branched_from: the checkpoint of another run that it goes on from.
    Raises: CheckpointError when the disk is full or fails.
    """
    before = _read_record(folder) or {}
    start = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "step": step, "owner": owner}
    record = {
        "format": 1,
        "experiment": before.get("experiment", experiment),
        "folder": before.get("folder", folder.name),
        "branched_from": before.get("branched_from", None if branched_from is None else str(branched_from)),
        "starts": [*before.get("starts", []), start],
    }
    write_text_atomically(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def find_runs(save: Path, experiment: str | None = None) -> list[Run]:
    """The run folders below `save`, of one experiment or of all, the newest first.

    Raises: CheckpointError when `save` can't be read.
    """
    try:
        folders = [each for each in save.iterdir() if each.is_dir()] if save.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{save} can't be read: {error.strerror}") from error
    runs = [run for folder in folders if (run := read_run(folder)) is not None]
    mine = [run for run in runs if run.experiment and experiment in (None, run.experiment)]
    return sorted(mine, key=lambda run: (run.last_start, run.is_original), reverse=True)


def read_run(folder: Path) -> Run | None:
    """The run in this folder; None when it is no run folder."""
    record = _read_record(folder)
    if record is not None:
        starts = [datetime.fromisoformat(each["time"]).timestamp() for each in record["starts"]]
        return Run(folder, record["experiment"], max(starts), folder.name == record["folder"])
    configs = list(folder.glob(_CONFIGS))
    match = _OLD_NAME.fullmatch(folder.resolve().name)
    latest = folder / LATEST
    if not configs and not (match and latest.is_file()):
        return None
    times = [file.stat().st_mtime for file in (*configs, latest) if file.is_file()]
    return Run(folder, match["experiment"] if match else "", max(times))


def _read_record(folder: Path) -> dict[str, Any] | None:
    """None when there is none, or it is damaged: the name of the folder must do then."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        is_whole = isinstance(record["experiment"], str) and isinstance(record["folder"], str) and record["starts"]
        for start in record["starts"]:
            datetime.fromisoformat(start["time"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return record if is_whole and isinstance(record, dict) else None


def whole_iterations(run: Path, *, with_state: bool = False) -> dict[int, Path]:
    """The checkpoints of a run by their iteration, in order. with_state: only those that a run can go on from."""
    found = {int(each.name): each for each in run.iterdir() if each.name.isdecimal() and is_whole(each, with_state)}
    return dict(sorted(found.items()))


def is_whole(iteration: Path, with_state: bool = False) -> bool:
    """Whether a folder holds weights (and the state of training)."""
    return any(iteration.glob(_WEIGHTS)) and (not with_state or any((iteration / STATE_FOLDER).glob("rank_*.pt")))


def newest_iteration(run: Path, *, with_state: bool = False) -> Path | None:
    """The checkpoint that `latest` names. One line says when it is the newest whole one instead, because `latest` is
    missing, names one that is not there, or was not written any more behind a finished save. None without any.
    """
    there = whole_iterations(run, with_state=with_state)
    if not there:
        return None
    name, newest = _read_latest(run), list(there.values())[-1]
    if name is None:
        _log.warning("%s has no file `%s` with the name of a checkpoint: taking %s, the newest whole one",
                     run, LATEST, newest.name)  # fmt: skip
        return newest
    named = run / name
    if not is_whole(named, with_state):
        _log.warning("%s names %s, which is not there as a whole: taking %s, the newest one that is",
                     run / LATEST, name, newest.name)  # fmt: skip
        return newest
    if name.isdecimal() and int(name) < int(newest.name) and _written(newest) > (run / LATEST).stat().st_mtime_ns:
        _log.warning("%s names %s, but %s was saved after it and is whole: taking that",
                     run / LATEST, name, newest.name)  # fmt: skip
        return newest
    return named


def _read_latest(run: Path) -> str | None:
    """What may be a name in the file `latest`."""
    try:
        with (run / LATEST).open("rb") as file:
            text = file.read(300).decode("utf-8-sig").strip()
    except (OSError, ValueError):
        return None
    return text if text and len(text) < 256 and text.isprintable() and "/" not in text and text[0] != "." else None


def _written(iteration: Path) -> int:
    return max(file.stat().st_mtime_ns for file in iteration.glob(_WEIGHTS))


def find_weights(load: str, save: str, experiment: str | None = None) -> Path:
    """The path of the weights that `args.load` means.

    load: a path, which for a run folder becomes that of its newest checkpoint; "latest" for the newest run below `save`
    (of this experiment, or of all); or the name of an experiment, for its newest run.
    Raises: CheckpointError when nothing of the kind is there.
    """
    path = Path(os.path.expanduser(load))
    if load != LATEST and os.path.exists(path):  # also where no file can have such a name
        is_run = path.is_dir() and not is_whole(path) and read_run(path) is not None
        return (newest_iteration(path) if is_run else None) or path
    wanted = experiment if load == LATEST else load
    runs = find_runs(Path(save).expanduser(), wanted)
    for run in runs:
        found = newest_iteration(run.folder)
        if found is not None:
            _log.info("args.load: %s is %s", load, found)
            return found
        _log.warning("args.load: %s has no checkpoint: looking at the run before it", run.folder)
    what = f"{load}, but" if load == LATEST else f"{shown_path(load)}: no such file or folder, and"
    raise CheckpointError(f"args.load: {what} {no_run(save, wanted, with_weights=bool(runs))}")


def no_run(save: str, experiment: str | None, *, with_weights: bool = False) -> str:
    """For messages: that there is no run of this experiment (with a checkpoint), and of which there are some."""
    names = sorted({run.experiment for run in find_runs(Path(save).expanduser())} - {experiment})
    others = f"; there are runs of {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
    whose = f" of {shown(experiment)}" if experiment is not None else ""
    return f"{save} holds no run{whose}{' with a checkpoint' if with_weights else ''}{others}"
