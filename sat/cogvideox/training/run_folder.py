"""The folder of a run, `<save>/<experiment_name>-MM-DD-HH-MM/`, and the lock that gives it one writer.

training_config.yaml   the configuration in force      model_config.json   its model section, for tools
<iteration>/           checkpoints (weights.sat_folder) latest              the newest whole one
run.json               whose it is, and its starts (weights.runs)
run.lock               while a process writes here
metrics.jsonl, tensorboard/, samples/, summary.json
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from cogvideox.config.compare import changed_settings
from cogvideox.config.load import resolved_yaml
from cogvideox.config.schema import Config
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.log import get_logger
from cogvideox.training.optional_output import OptionalOutput
from cogvideox.training.which_run import RunChoice
from cogvideox.weights.atomic import check_writable, settle_interrupted
from cogvideox.weights.file_lock import FileLock, lock_file, this_process
from cogvideox.weights.run_config import run_config_name
from cogvideox.weights.runs import record_start

LOCK_FILE = "run.lock"
_WHERE_FROM = ("args.resume", "args.load", "args.base_model")  # no settings of a run that goes on
_LEFT_BY_SAVES = re.compile(r"\.(?P<iteration>\d+)\.(?P<kind>partial|replaced|lock)")  # names of weights.atomic
_log = get_logger(__name__)


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
    """Leave the configuration beside the checkpoints. A resumed run keeps the first one and adds its own.

    Raises: OSError when the disk is full or fails.
    """
    suffix = f"-resumed-at-{iteration}" if iteration else ""
    (folder / run_config_name(iteration)).write_text(config.resolved_yaml, encoding="utf-8")
    model = json.dumps(asdict(config.model), indent=2)
    (folder / f"model_config{suffix}.json").write_text(model + "\n", encoding="utf-8")


def newest_config(folder: Path) -> Path | None:
    """The configuration that the run was last started with; None when the folder holds none."""
    return max(folder.glob("training_config*.yaml"), key=lambda file: file.stat().st_mtime_ns, default=None)


class RunLock:
    """The right to write into one run folder, which ends with this object's block, with the process, or with the right
    to another one.
    """

    def __init__(self) -> None:
        self._lock: FileLock | None = None
        self._folder: Path | None = None

    def take(self, folder: Path) -> None:
        """Become the only writer of a run folder, and put right what a killed one left there. Again is harmless.

        Raises: CheckpointError that names who writes there.
        """
        if self._folder == folder:
            return
        self._release()
        refusal = f"{folder} is being written by {{owner}}: wait for that run, or end it; two runs would mix"
        try:
            self._lock = lock_file(folder / LOCK_FILE, refusal)
            self._folder = folder
            if not self._lock.is_effective:
                _log.warning("the disk of %s has no locks: see to it that no other run writes there", folder)
            settle_run(folder)
        except OSError as error:
            raise CheckpointError(f"cannot write to {folder}: {error.strerror}") from error

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = self._folder = None


def settle_run(folder: Path) -> None:
    """Bring back checkpoints that a killed replacement hid, and remove the halves that killed saves left.

    Only under the run's lock. Raises: OSError when the disk fails.
    """
    left = {each.name: match for each in folder.iterdir() if (match := _LEFT_BY_SAVES.fullmatch(each.name))}
    for name, match in left.items():
        settle_interrupted(folder / match["iteration"])
        if match["kind"] == "lock":
            (folder / name).unlink(missing_ok=True)


def open_run_folder(config: Config, choice: RunChoice, step: int, lock: RunLock) -> Path:
    """The folder that the run writes in, locked, with its record and configuration.

    step: the last one that is behind the run. Raises: CheckpointError.
    """
    args, goes_on = config.train_args, choice.folder is not None
    folder = choice.folder if choice.folder is not None else make_run_folder(args.save, args.experiment_name)
    lock.take(folder)
    before = choice.folder if choice.resume is None else choice.resume.parent
    if before is not None:
        _compare_settings(before, config)
    _log.info("run folder %s%s", folder, f" (branched from {choice.branched_from})" if choice.branched_from else "")
    start = (args.experiment_name, step, this_process(), choice.branched_from)
    optional = OptionalOutput()
    optional.write("the run's record", lambda: record_start(folder, *start))
    settled = _with_load(config, choice.load)
    optional.write("the configuration", lambda: write_config(folder, settled, step if goes_on else 0))
    return folder


def _with_load(config: Config, load: Path | None) -> Config:
    """With the checkpoint that `args.load` meant, e.g. of a run folder: another one may be the newest tomorrow."""
    if load is None:
        return config
    args = replace(config.train_args, load=str(load))
    return replace(config, args=args, resolved_yaml=resolved_yaml(args, config.model, config.data, config.deepspeed))


def _compare_settings(run: Path, config: Config) -> None:
    saved = newest_config(run)
    try:
        changed = {} if saved is None else changed_settings(saved, config.resolved_yaml)
    except ConfigError as error:
        _log.warning("not compared with the settings of the run that is resumed: %s", error)
        return
    texts = [f"{key} {old} -> {new}" for key, (old, new) in changed.items() if key not in _WHERE_FROM]
    if texts:
        _log.warning("resumed with other settings than those of %s: %s", saved, ", ".join(texts))
