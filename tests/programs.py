"""Programs under signals: started as users start them, and watched through what they write. Nothing waits for a fixed
time, so that a loaded machine makes these tests slower, and not wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "sat" / "train_video.py")
SAMPLE = str(ROOT / "sat" / "sample_video.py")
PATIENCE_S = 240.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    """Look again and again. AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


class Program:
    """One started command with everything that it and its children write."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self._output = process, output

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until `text` stands in the output."""

        def has_come() -> bool:
            assert text in self.output or self.process.poll() is None, f"ended without {text!r}:\n{self.output}"
            return text in self.output

        wait_until(has_come, f"{text!r} in\n{self.output}")

    def ranks(self) -> list[psutil.Process]:
        """The processes that train or sample, in rank order."""
        return [each for each in psutil.Process(self.process.pid).children() if "_video.py" in " ".join(each.cmdline())]

    def status(self, seconds: float = PATIENCE_S) -> int:
        """Wait for the end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.output}") from None


@contextmanager
def started(folder: Path, *words: str, processes: int = 1, launcher: Sequence[str] | None = None) -> Iterator[Program]:
    """A script in one process, or in several by tools/launch.py or another launcher. What still runs afterwards is
    killed."""
    command = [sys.executable, *words]
    if processes > 1:
        launcher = launcher or [str(ROOT / "tools" / "launch.py"), str(processes)]
        command = [sys.executable, *launcher, *words]
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["OMP_NUM_THREADS"] = "1"
    output = folder / "output.txt"
    with output.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)
    program = Program(process, output)
    try:
        yield program
    finally:
        family = _family(process.pid)
        for each in family:
            each.kill()
        process.wait()
        psutil.wait_procs(family, 10)


def _family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [*first.children(recursive=True), first]
    except psutil.NoSuchProcess:
        return []
