"""The process group: alone, in pairs, and when the others do not come."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from cogvideox import stopping
from cogvideox.errors import ConfigError, DataError, LostProcessError
from cogvideox.parallel.groups import start_process_groups
from cogvideox.parallel.launch import adopt_launch
from processes import free_port, run_processes
from programs import wait_until


def test_alone_needs_no_port_and_reduces_to_itself(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    groups = start_process_groups("cpu")
    assert (groups.rank, groups.world_size, groups.is_first, groups.device.type) == (0, 1, True, "cpu")
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(groups.mean(value), value) and torch.equal(groups.max(value), value)
    assert groups.gather_objects("me") == ["me"] and groups.share([1, 2, 3]) == [1, 2, 3]
    groups.agree(None)


def test_cuda_without_a_device_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=r"args.device: cuda, but no CUDA device is visible; use args.device=cpu"):
        start_process_groups("cuda")


def _tasks_of_srun(visible: int, gpus: list[str]) -> tuple[str, int, str]:
    """One task on a machine whose GPUs are pretended: how many it sees, and which one its first is."""
    rank = int(os.environ["RANK"])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[name]
    os.environ.update(
        SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS=str(len(gpus)), SLURM_LOCALID=str(rank), SLURM_NNODES="1"
    )
    real, chosen = dist.init_process_group, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: visible)
        patch.setattr(torch.cuda, "set_device", chosen.append)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=gpus[rank]))
        patch.setattr(dist, "init_process_group", lambda _, **named: real("gloo", **named))
        adopt_launch(os.environ)
        try:
            groups = start_process_groups()
        except ConfigError as error:
            return str(error), 0, ""
    assert chosen == [groups.device]
    return str(groups.device), groups.local_rank, os.environ["LOCAL_RANK"]


def test_tasks_that_see_one_gpu_each_take_it():
    """srun --gpus-per-task=1: the GPU is number 0 in each, whatever the task's number on its machine."""
    found = run_processes(_tasks_of_srun, 2, 1, ["GPU-a", "GPU-b"])
    assert found == [("cuda:0", 0, "0"), ("cuda:0", 1, "0")]


def test_tasks_that_see_all_gpus_take_their_own():
    found = run_processes(_tasks_of_srun, 2, 2, ["GPU-a", "GPU-b"])
    assert found == [("cuda:0", 0, "0"), ("cuda:1", 1, "1")]


def test_tasks_on_the_same_gpu_are_refused():
    for text, *_ in run_processes(_tasks_of_srun, 2, 1, ["GPU-a", "GPU-a"]):
        assert text.startswith("processes 0 and 1 have the same CUDA device (GPU-a of ")


def _collectives() -> dict[str, object]:
    groups = start_process_groups("cpu")
    error = DataError("clip 7 is broken") if groups.rank == 1 else None
    raised = ""
    try:
        groups.agree(error)
    except DataError as agreed:
        raised = str(agreed)
    rank = torch.tensor(float(groups.rank))
    return {
        "mean": float(groups.mean(rank)),
        "sum": float(groups.sum(rank)),
        "max": float(groups.max(rank)),
        "objects": groups.gather_objects(groups.rank),
        "first": groups.broadcast_object(f"from {groups.rank}"),
        "share": groups.share(range(5)),
        "raised": raised,
    }


def _one_works_longer(collective_seconds: float) -> list[int]:
    groups = start_process_groups("cpu", collective_seconds=collective_seconds)
    if groups.rank == 1:
        time.sleep(2 * collective_seconds)
    groups.agree(None)
    return groups.gather_objects(groups.rank)


def test_a_process_that_works_longer_is_waited_for():
    """One more video on one of them may take an hour."""
    assert run_processes(_one_works_longer, 2, 2.0) == [[0, 1], [0, 1]]


def _one_ends() -> str:
    """Rank 1 closes its connections as its death would."""
    try:
        with start_process_groups("cpu") as groups:
            if groups.rank == 1:
                groups.peers._peers[0].connection.shutdown(socket.SHUT_RDWR)
                dist.destroy_process_group()
                return "gone"
            groups.agree(None)
    except LostProcessError as error:
        return str(error)
    return "agreed"


def test_a_process_that_ended_is_not():
    first, _ = run_processes(_one_ends, 2)
    assert re.match(r"rank 1 \(process \d+ on .*\) has ended without a word", first)


def _one_is_asked_to_stop() -> tuple[str, bool]:
    """Rank 0 works, and hears of it; rank 1, which was asked, takes part in what is agreed."""
    with start_process_groups("cpu") as groups:
        if groups.rank == 1:
            stopping.request(signal.SIGTERM, "SIGTERM")
        with stopping.deferred():
            try:
                groups.attempt(lambda: wait_until(lambda: stopping.requested(), "the news") or stopping.check())
            except stopping.Stopped as stop:
                return str(stop), stopping.requested()
    return "", False


def test_a_request_to_stop_reaches_all_processes():
    first, second = run_processes(_one_is_asked_to_stop, 2)
    # One request, the first one's, on both.
    assert first == second == ("interrupted (SIGTERM of rank 1); nothing was saved", True)


def _one_fails_alone() -> str:
    try:
        with start_process_groups("cpu") as groups:
            if groups.rank == 1:
                raise DataError("this machine has no clips")
            groups.agree(None)
    except (LostProcessError, DataError) as error:
        return str(error)
    return "agreed"


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others_with_its_text():
    first, second = run_processes(_one_fails_alone, 2)
    assert second == "this machine has no clips"
    assert re.match(r"rank 1 \(process \d+ on .*\) has ended: this machine has no clips", first)


def test_two_processes_agree():
    first, second = run_processes(_collectives, 2)
    assert (first["mean"], first["sum"], first["max"]) == (0.5, 1.0, 1.0)
    assert first["objects"] == [0, 1] and second["first"] == "from 0"
    assert sorted(first.pop("share") + second.pop("share")) == [0, 1, 2, 3, 4]
    assert first == second and first["raised"] == "clip 7 is broken"


def _meet_nobody(rank: int) -> tuple[str, float]:
    import os

    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=str(free_port()))
    started = time.perf_counter()
    try:
        start_process_groups("cpu", rendezvous_seconds=1.0)
    except ConfigError as error:
        return str(error), time.perf_counter() - started
    return "met somebody", 0.0


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_processes_are_reported_in_time(rank):
    ((message, seconds),) = run_processes(_meet_nobody, 1, rank)
    assert f"process {rank} of 2 could not reach the others at 127.0.0.1:" in message
    assert "are all of them started, with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE" in message
    assert seconds < 30
