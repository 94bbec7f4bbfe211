"""A process that dies at any moment of a save leaves a run folder that goes on, and loses at most that save."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.training.run_folder import RunLock
from cogvideox.weights import atomic, sat_folder
from cogvideox.weights.atomic import remove_folder
from cogvideox.weights.runs import newest_iteration, record_start
from cogvideox.weights.sat_folder import read_checkpoint, write_checkpoint


class Killed(BaseException):
    """Nothing that the process still does has an effect."""


def die_after(monkeypatch: pytest.MonkeyPatch, steps: int, inside: tuple[str, ...] = ()) -> list[str]:
    """Let the process die after so many changes of the disk; which ones were made. inside: functions of os as well."""
    done: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if len(done) == steps:
                raise Killed
            done.append(name)
            return real(*arguments, **named)

        return call

    for owner, name in (
        *((Path, each) for each in ("mkdir", "rename", "replace", "unlink", "rmdir")),
        (os, "fsync"),
        (shutil, "rmtree"),
        (sat_folder, "save_hashed"),
        *((os, each) for each in inside),
    ):
        monkeypatch.setattr(owner, name, dying(name, getattr(owner, name)))
    return done


def forget_locks() -> None:
    """What the kernel does for a process that has died."""
    for lock in atomic._LOCKS.values():
        os.close(lock.descriptor)
    atomic._LOCKS.clear()


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3,), float(step))}


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_every_moment_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool) -> None:
    whole: list[str] = []
    for moment in range(100):
        run = tmp_path / str(moment)
        run.mkdir()
        record_start(run, "a", 0, "process 1 on host a")
        for step in (1, 2) if replacing else (1,):
            write_checkpoint(run, step, weights(step), {})
        with monkeypatch.context() as patched:
            done = die_after(patched, moment)
            try:
                write_checkpoint(run, 2, weights(20), {}, overwrite=True)
            except Killed:
                pass
            else:
                whole = done
                break
            finally:
                forget_locks()
        with RunLock() as lock:
            lock.take(run)
            newest = newest_iteration(run)
            assert newest is not None and newest.name in (("2",) if replacing else ("1", "2")), done
            value = read_checkpoint(newest).module["weight"].tolist()
            assert value in ([[2.0] * 3, [20.0] * 3] if replacing else [[float(newest.name)] * 3, [20.0] * 3]), done
            write_checkpoint(run, 2, weights(30), {}, overwrite=True)
            assert newest_iteration(run) == run / "2" and read_checkpoint(run).module["weight"].tolist() == [30.0] * 3
        assert sorted(path.name for path in run.iterdir()) == ["1", "2", "latest", "run.json"], done
    assert {"mkdir", "save_hashed", "fsync", "rename", "replace"} <= set(whole) and len(whole) > 7


def test_every_moment_of_a_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that `keep_last` removes is whole or gone."""
    for moment in range(1, 100):
        run = tmp_path / str(moment)
        (run / "1" / "training_state").mkdir(parents=True)
        files = ("mp_rank_00_model_states.pt", "training_state/rank_00000.pt")
        for name in files:
            (run / "1" / name).touch()
        with monkeypatch.context() as patched:
            done = die_after(patched, moment, ("unlink", "rmdir"))
            try:
                remove_folder(run / "1")
            except Killed:
                pass
            else:
                break
        with RunLock() as lock:
            lock.take(run)
        assert not (run / "1").exists() or all((run / "1" / name).exists() for name in files), done
        assert [path.name for path in run.iterdir()] in ([], ["1"]), done
    assert moment > 4, done
