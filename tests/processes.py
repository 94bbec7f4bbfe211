"""Run a function in several processes that form a group over gloo, as torchrun would."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_s: float = 240.0
) -> list[Any]:
    """`function(*arguments)` in each of `world_size` fresh processes with a launcher's environment; results
    in rank order. They are forks of one process that has only imported the libraries, which takes seconds.

    An exception in any process is raised here as RuntimeError with that process's traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cogvideox.training.trainer"])
    queue = context.Queue()
    environment = {**os.environ, "WORLD_SIZE": str(world_size)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        context.Process(target=_run, args=(function, rank, environment, arguments, queue), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        answers = dict(queue.get(timeout=timeout_s) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
    failures = [text for kind, text in answers.values() if kind == "error"]
    if failures:
        raise RuntimeError("\n".join(failures))
    return [answers[rank][1] for rank in range(world_size)]


def _run(function: Any, rank: int, environment: dict[str, str], arguments: Any, queue: Any) -> None:
    os.environ.clear()  # it is that of the process they are forks of
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    import torch

    torch.set_num_threads(1)
    try:
        queue.put((rank, ("result", function(*arguments))))
    except BaseException:  # noqa: BLE001 - whatever it was, the parent has to hear of it
        queue.put((rank, ("error", traceback.format_exc())))
