"""Several processes of one program: their places, and the status that is left of theirs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cogvideox.parallel import launcher
from cogvideox.parallel.launch import Launch, read_launch
from cogvideox.parallel.launcher import environments

LAUNCH = [sys.executable, str(Path(__file__).resolve().parents[2] / "tools" / "launch.py")]
PROGRAM = "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n"


def launch(folder: Path, body: str, count: int = 2) -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM + body)
    command = [*LAUNCH, str(count), str(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_places_on_one_machine():
    launches = [read_launch(place) for place in environments({}, 2)]
    assert launches == [Launch(rank, 2, rank, "127.0.0.1", launches[0].port) for rank in (0, 1)]


def test_places_of_a_task_of_slurm():
    """One task a machine, four processes each: one run of eight."""
    task = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_PROCID": "1",
    }
    launches = [read_launch({**task, **place}) for place in environments(task, 4)]
    assert launches == [Launch(4 + n, 8, n, "n1", 20000) for n in range(4)]


@pytest.mark.parametrize(
    "body, status",
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(2 if rank == 1 else 0)", 2),
        ("time.sleep(0.5 * rank); sys.exit(1 + rank)", 1),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank else sys.exit(0)", 137),
    ],
)
def test_statuses(tmp_path, body, status):
    done = launch(tmp_path, body)
    assert (done.returncode, done.stderr) == (status, "")


def test_when_nobody_is_left_to_say_why(tmp_path):
    done = launch(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 137
    assert done.stderr == "error: all processes were ended by signals: SIGKILL, SIGKILL\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_go_on_to_every_process_once(tmp_path, number):
    (tmp_path / "program.py").write_text(
        PROGRAM
        + "seen = []\n"
        + f"signal.signal({int(number)}, lambda *_: seen.append(1))\n"
        + "os.write(1, b'ready\\n')\n"
        + "while not seen: time.sleep(0.01)\n"
        + "time.sleep(0.2)\n"
        + "sys.exit(40 + len(seen))\n"
    )
    program = subprocess.Popen([*LAUNCH, "2", str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert [program.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    program.send_signal(number)
    assert program.wait(60) == 41


@pytest.mark.parametrize("place", [0, 1])
def test_a_signal_while_the_processes_are_started(monkeypatch, place):
    """It reaches each of them, and the first one too: none goes on alone."""
    started, popen = [], subprocess.Popen

    def start(*args, **kwargs):
        if len(started) == place:
            signal.raise_signal(signal.SIGTERM)
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(launcher.subprocess, "Popen", start, raising=True)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert launcher.run_processes(sleep, 2) == 128 + signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize("words", [[], ["2"], ["two", "program.py"], ["0", "program.py"]])
def test_usage(words):
    done = subprocess.run([*LAUNCH, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: usage: python tools/launch.py PROCESSES PROGRAM.py")
