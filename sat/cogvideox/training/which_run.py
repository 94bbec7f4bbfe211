"""Which run `args.resume` and `args.load` mean, and where it may write. Reads names and small files only: no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.config.schema import TrainArgs
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.log import get_logger
from cogvideox.user_files import shown_path
from cogvideox.weights.runs import (
    LATEST,
    STATE_FOLDER,
    find_runs,
    find_weights,
    is_whole,
    newest_iteration,
    no_run,
    read_run,
    whole_iterations,
)

SUMMARY_FILE = "summary.json"
_log = get_logger(__name__)


@dataclass(frozen=True)
class RunChoice:
    """What a run starts from, and where it writes.

    load: the weights of a run that begins (None: random ones). resume: the checkpoint, an iteration folder, of a run
    that goes on. folder: the run folder that it goes on in; None: a new one of its own.
    """

    load: Path | None = None
    resume: Path | None = None
    folder: Path | None = None

    @property
    def source(self) -> Path | None:
        """Where the weights are."""
        return self.resume if self.resume is not None else self.load

    @property
    def branched_from(self) -> Path | None:
        """The checkpoint of another run that this one goes on from, in a folder of its own."""
        return self.resume if self.folder is None else None

    @property
    def step(self) -> int:
        """Steps done, as the name of the checkpoint says; 0 where it doesn't."""
        return int(self.resume.name) if self.resume is not None and self.resume.name.isdecimal() else 0


def choose_run(args: TrainArgs, claim: Callable[[Path], object] = lambda folder: None) -> RunChoice:
    """Find out what the run is, and say it where it isn't plain.

    claim: called with the run folder in which the run goes on, before its checkpoints are looked at: the place for a
    lock. Raises: CheckpointError, ConfigError.
    """
    if args.resume is None:
        return RunChoice(load=_weights(args))
    if args.resume == LATEST:
        # The newest run, whatever it has: passing over one without a checkpoint would go on with, and write into, a run
        # that was finished long ago.
        runs = find_runs(Path(args.save).expanduser(), args.experiment_name)
        if not runs:
            raise CheckpointError(
                f"args.resume: latest, but {no_run(args.save, args.experiment_name)}; start without args.resume, or "
                "give the path of a run folder"
            )
        return _go_on_in(runs[0].folder, args, claim)
    path = Path(os.path.expanduser(args.resume))
    if not os.path.exists(path):
        raise CheckpointError(
            f"args.resume: no checkpoint at {shown_path(path)}: give latest, a run folder or an iteration folder"
        )
    path = path.resolve()  # the run's own name, also behind a link
    iteration = path.parent if path.is_file() else path
    return _go_on_from(iteration, claim) if is_whole(iteration) else _go_on_in(path, args, claim)


def _weights(args: TrainArgs) -> Path | None:
    if args.load is not None:
        return find_weights(args.load, args.save, args.experiment_name)
    if args.mode == "finetune":
        raise ConfigError(
            "args.load: missing: fine-tuning starts from the weights of a transformer; give their folder, or set "
            "args.mode=pretrain to start from random weights"
        )
    return None


def _go_on_in(run: Path, args: TrainArgs, claim: Callable[[Path], object]) -> RunChoice:
    """With the newest checkpoint of a run folder, or from the start when it was stopped before the first one."""
    is_run = read_run(run) is not None
    if is_run:
        claim(run)
    newest = newest_iteration(run, with_state=True)
    if newest is not None:
        return _go_on_from(newest, claim)
    weights = newest_iteration(run)
    if weights is not None:
        raise _no_state(weights)
    if not is_run:
        raise CheckpointError(f"args.resume: no checkpoint at {run}: give latest, a run folder or an iteration folder")
    _log.warning("args.resume: %s was stopped before its first checkpoint: it starts again from step 0, in this folder",
                 run)  # fmt: skip
    return RunChoice(load=_weights(args), folder=run)


def _go_on_from(iteration: Path, claim: Callable[[Path], object]) -> RunChoice:
    """In the run folder of this checkpoint when it is the newest one there, else in a new one."""
    if not is_whole(iteration, with_state=True):
        raise _no_state(iteration)
    run = iteration.parent
    later = [each for each in whole_iterations(run) if not iteration.name.isdecimal() or each > int(iteration.name)]
    if later:
        _log.warning("args.resume: %s also holds iteration %s: this run goes on from %s in a folder of its own",
                     run, later[-1], iteration.name)  # fmt: skip
        return RunChoice(resume=iteration)
    if read_run(run) is None:
        _log.warning("args.resume: %s is no run folder: this run goes on from %s in a folder of its own",
                     run, iteration)  # fmt: skip
        return RunChoice(resume=iteration)
    claim(run)
    return RunChoice(resume=iteration, folder=run)


def _no_state(iteration: Path) -> CheckpointError:
    return CheckpointError(
        f"args.resume: {iteration} holds weights but no {STATE_FOLDER}/ (optimizer, data position); to start a new "
        "run from these weights give them as args.load"
    )


def finished_summary(choice: RunChoice, train_iters: int) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do; None for one that has, be it only the last evaluation."""
    if choice.resume is None or choice.step < train_iters:
        return None
    try:
        summary = json.loads((choice.resume.parent / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_whole_one = isinstance(summary, dict) and isinstance(summary.get("iterations"), int)
    return summary if is_whole_one and summary["iterations"] >= train_iters else None


def say_finished(choice: RunChoice, train_iters: int) -> None:
    """One line: nothing to do, where the checkpoint is, and how to go on."""
    _log.info("nothing to do: all %d of %d iterations are done, and the checkpoint is %s; to train on, give more, e.g. "
              "args.train_iters=%d", choice.step, train_iters, choice.resume, 2 * choice.step)  # fmt: skip
