"""One writer for a run folder, and what a killed one left there."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import cogvideox
import pytest
from cogvideox.errors import CheckpointError
from cogvideox.training.run_folder import RunLock

HOLD = """
import sys, time
from pathlib import Path
from cogvideox.training.run_folder import RunLock
lock = RunLock()
lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_the_second_writer_is_refused_until_the_first_ends(run: Path) -> None:
    with RunLock() as first:
        first.take(run)
        first.take(run)
        with pytest.raises(CheckpointError, match=rf"run is being written by process {os.getpid()} on host \S+: wait"):
            RunLock().take(run)
        assert names(run) == ["run.lock"]
    assert names(run) == []
    (run / "other").mkdir()
    with RunLock() as second:
        second.take(run)
        second.take(run / "other")  # a run that branches off gives its source back
        assert names(run) == ["other"] and names(run / "other") == ["run.lock"]


def test_a_killed_writer_holds_nothing(run: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(cogvideox.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"is being written by process {other.pid} on host"):
            RunLock().take(run)
        other.send_signal(signal.SIGKILL)
    with RunLock() as lock:
        lock.take(run)
        assert f"process {os.getpid()} " in (run / "run.lock").read_text()


def test_a_disk_without_locks(run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    with RunLock() as lock:
        lock.take(run)
    assert f"the disk of {run} has no locks: see to it that no other run writes there" in caplog.text


def test_what_a_killed_run_left(run: Path) -> None:
    for name in (".2.replaced", ".4.replaced", "4", ".6.partial", ".diffusers.partial", ".7.lock"):
        (run / name).mkdir() if name != ".7.lock" else (run / name).touch()
        if name != ".7.lock":
            (run / name / "file").write_text(name)
    with RunLock() as lock:
        lock.take(run)
    # 2 was between two renames; 4 had them both; the export that may be writing now is not ours.
    assert names(run) == [".diffusers.partial", "2", "4"]
    assert (run / "2" / "file").read_text() == ".2.replaced" and (run / "4" / "file").read_text() == "4"


def test_a_folder_that_can_not_be_written(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write to .*gone: No such file or directory"):
        RunLock().take(run / "gone")
