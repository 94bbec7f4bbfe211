"""Start several processes of one program on this machine, and end as they end.

Beside what torchrun does, this leaves the processes as long as they need to save when they are asked to stop (torchrun
kills them after 30 s), ends with their exit status, and adds no report to their own line of why they ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from cogvideox import stopping
from cogvideox.parallel.launch import read_launch
from cogvideox.parallel.parent import LAUNCHER

_LOOK_S = 0.1
# Processes end by themselves when one of them is gone (see peers); what is left after this long is stuck or stopped.
_LEFT_BEHIND_S = 25.0


def run_processes(command: Sequence[str], count: int) -> int:
    """Run `command` in `count` processes; the exit status that says how they ended.

    As a task of Slurm or MPI on several machines, with the same count on each, the processes of all are one run.
    SIGINT, SIGTERM and SIGHUP go on to all processes. Should this process be killed, they stop by themselves.
    Raises: ConfigError for a contradictory environment.
    """
    places = environments(os.environ, count)
    processes: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        if len(processes) < len(places):  # some would never hear of it
            early.append(signum)
            return
        for process in processes:
            process.send_signal(signum)

    heard = [each for each in stopping.SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, pass_on) for each in heard}
    try:
        for place in places:
            # In sessions of their own: what a terminal sends to everybody reaches them through this process only.
            processes.append(subprocess.Popen(command, env={**os.environ, **place}, start_new_session=True))
        for signum in early:
            pass_on(signum, None)
        return _wait(processes)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def environments(environment: Mapping[str, str], count: int) -> list[dict[str, str]]:
    """What each process finds in its environment beside what is there already. Raises: ConfigError."""
    outer = read_launch(environment)
    port = str(outer.port) if outer.world_size > 1 else str(_free_port())
    common = {
        "WORLD_SIZE": str(outer.world_size * count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": outer.address,
        "MASTER_PORT": port,
        LAUNCHER: str(os.getpid()),
        # Without it each process would compute on all cores.
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // count)),
    }
    return [{**common, "RANK": str(outer.rank * count + n), "LOCAL_RANK": str(n)} for n in range(count)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all. The first process that fails gives the status; after that the others have a while to end."""
    first: int | None = None
    deadline = float("inf")
    while None in [process.poll() for process in processes]:
        failed = [process.returncode for process in processes if process.returncode]
        if failed and first is None:
            first = min(failed)  # of several at once, one ended by a signal, which is a negative number
            if first != stopping.EXIT_SAVED:  # they are saving, or leave together
                deadline = time.monotonic() + _LEFT_BEHIND_S
        if time.monotonic() > deadline:
            for rank, process in enumerate(processes):
                if process.poll() is None:
                    stopping.say(f"process {rank} (pid {process.pid}) does not end: killed")
                    process.kill()
            deadline = float("inf")
        time.sleep(_LOOK_S)
    statuses = [process.returncode for process in processes]
    if first is None:
        first = min(statuses, key=lambda status: (status == 0, status))
    if all(status < 0 for status in statuses):  # nobody was left to say it
        stopping.say(f"error: all processes were ended by signals: {', '.join(map(_name, statuses))}")
    return first if first >= 0 else 128 - first


def _name(status: int) -> str:
    return signal.Signals(-status).name
