"""A process that a launcher has started ends when its launcher is gone, also when that was killed.

Otherwise the processes of a killed torchrun would train on, unseen, on devices that the next run wants. A process that
was started by a shell, by nohup or as the first one of a container has no launcher, and lives on without its parent.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

from cogvideox import stopping

LAUNCHER = "COGVIDEOX_LAUNCHER"  # tools/launch.py leaves its process number here
# What torchrun and deepspeed leave with the processes that they start and wait for.
_MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
_LOOK_S = 1.0


def end_with_launcher(environment: Mapping[str, str]) -> None:
    """Ask this process to stop, in order, once the launcher that started it is gone."""
    started_by = environment.get(LAUNCHER) or os.getppid()
    if environment.get(LAUNCHER) or any(environment.get(mark) for mark in _MARKS):
        threading.Thread(target=_look, args=(int(started_by),), name="launcher", daemon=True).start()


def _look(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_LOOK_S)
    stopping.request(signal.SIGTERM, "its launcher has ended")
