"""Signals become a request, at the right moment; a second one ends the process."""

from __future__ import annotations

import os
import pickle
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cogvideox import stopping
from cogvideox.errors import UserError, run_cli

SOURCE = str(Path(stopping.__file__).resolve().parents[1])
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_can_get_lost_a_signal_raises_on_the_spot(number, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    def main(argv: object) -> None:
        send(number)
        threading.Event().wait(60)
        raise AssertionError("went on")

    assert run_cli(main, []) == 128 + number
    assert capsys.readouterr().err == f"interrupted ({number.name}); nothing was saved\n"


def test_inside_of_deferred_it_waits_for_a_check():
    reached = []

    def main(argv: object) -> None:
        with stopping.deferred():
            send(signal.SIGTERM)
            reached.append(stopping.requested())
            stopping.check()
        reached.append("behind the check")

    assert run_cli(main, []) == 143 and reached == [True]


def test_what_was_saved_makes_the_status():
    def main(argv: object) -> None:
        try:
            send(signal.SIGTERM)
            threading.Event().wait(60)
        except stopping.Stopped as stop:
            raise stop.after("step 3 is saved", saved=True) from None

    assert run_cli(main, []) == 75


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(each) for each in SIGNALS]
    assert run_cli(lambda argv: None, []) == 0
    assert [signal.getsignal(each) for each in SIGNALS] == before and not stopping.requested()


def test_another_thread_can_ask_and_it_is_announced_once():
    announced = []

    def main(argv: object) -> None:
        stopping.on_request(lambda signum, why: announced.append((signum, why)))
        asking = threading.Thread(target=stopping.request, args=(signal.SIGTERM, "SIGTERM of rank 2"))
        asking.start()
        threading.Event().wait(60)

    try:
        assert run_cli(main, []) == 143
    finally:
        stopping.on_request(None)
    assert announced == [(signal.SIGTERM, "SIGTERM of rank 2")]


def test_other_threads_of_a_program_without_signals_still_run_it():
    status = []
    thread = threading.Thread(target=lambda: status.append(run_cli(lambda argv: None, [])))
    thread.start()
    thread.join()
    assert status == [0]


def test_a_request_travels_between_processes():
    stop = pickle.loads(pickle.dumps(stopping.Stopped(15, "SIGTERM").after("all is saved", saved=True)))
    assert (str(stop), stop.status) == ("interrupted (SIGTERM); all is saved", 75)


def test_an_error_that_all_processes_raise_is_said_by_the_first(monkeypatch, capsys):
    def main(argv: object) -> None:
        error = UserError("no such folder")
        error.is_shared = True
        raise error

    monkeypatch.setenv("RANK", "1")
    assert run_cli(main, []) == 2 and capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert run_cli(main, []) == 2 and capsys.readouterr().err == "error: no such folder\n"


# A program that has something to lose: it never checks, and says when it is ready and when it was asked.
STUBBORN = """
import sys, time
from cogvideox import stopping
from cogvideox.errors import run_cli

def main(argv):
    with stopping.deferred():
        print("ready", flush=True)
        while not stopping.requested():
            time.sleep(0.01)
        print("asked", flush=True)
        if "saved" in argv:
            stopping.saved()
            print("saved", flush=True)
        if "write" in argv:
            sys.stderr.write("a progress bar")
            sys.stderr.flush()
            stopping.check()
        time.sleep(200)

sys.exit(run_cli(main))
"""


def start(*words: str, **streams: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "RANK": "0"}
    command = [sys.executable, "-c", STUBBORN, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True, **streams)  # type: ignore[call-overload]


def test_a_second_signal_ends_at_once():
    number = signal.SIGINT
    program = start(stderr=subprocess.PIPE)
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    program.send_signal(number)
    assert program.stdout.readline() == "asked\n"
    program.send_signal(number)  # the same request once more, as launchers and terminals send it
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.3)
    while program.poll() is None:
        program.send_signal(number)
        threading.Event().wait(0.1)
    assert program.returncode == 128 + number
    assert program.stderr is not None and program.stderr.read() == f"\ninterrupted ({number.name}); ended at once\n"


def test_after_everything_is_saved_a_second_signal_has_the_status_of_that():
    program = start("saved", stderr=subprocess.DEVNULL)
    assert program.stdout is not None
    program.stdout.readline()
    program.terminate()
    assert [program.stdout.readline() for _ in range(2)] == ["asked\n", "saved\n"]
    while program.poll() is None:
        program.terminate()
        threading.Event().wait(0.1)
    assert program.returncode == 75


def test_the_terminal_may_be_gone():
    """SIGHUP comes because it was closed, and then writing to it fails."""
    ours, theirs = pty.openpty()
    program = start("write", stderr=theirs, start_new_session=True)
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    os.close(theirs)
    os.close(ours)
    program.send_signal(signal.SIGHUP)
    assert program.wait(60) == 128 + signal.SIGHUP


def test_what_nohup_ignores_stays_ignored():
    program = start(stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGHUP)
    program.terminate()
    assert program.stdout.readline() == "asked\n"
    program.kill()
    program.wait()
