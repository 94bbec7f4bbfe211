"""The program of a decoding process: `python -m cogvideox.data.worker <connection fd> <clip file fd> <parent
pid>`.

Started by pool.ProcessPool and by nothing else. It is a fresh interpreter, not a fork and not a
multiprocessing child: forks of a process with threads and a device are unsafe, and multiprocessing would
    import the training script, SAT included.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing.connection import Connection

import torch

from cogvideox.data.clips import JobRunner, ReadDone, RowRead
from cogvideox.data.row_memory import write_row
from cogvideox.data.survey import Failure
from cogvideox.errors import DataError

READY = "ready"


def main(connection_fd: int, clip_fd: int, parent_pid: int) -> None:
    """Answer jobs until the other side closes. Clips go into the clip file, everything else through the
    connection.
    """
    threading.Thread(target=_exit_with, args=(parent_pid,), daemon=True).start()
    torch.set_num_threads(1)
    connection = Connection(connection_fd)
    try:
        reader: JobRunner = connection.recv()
        connection.send(READY)
        while True:
            job = connection.recv()
            try:
                result = reader.run(job)
            except DataError as error:
                connection.send(Failure.of(error))
                continue
            if isinstance(result, RowRead):
                write_row(clip_fd, result.values)
                connection.send(ReadDone(result.reader))
            else:
                connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _exit_with(parent_pid: int) -> None:
    """A process that hangs in a decoder can't see its connection close: this thread ends it when the parent
    is gone.
    """
    while os.getppid() == parent_pid:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
