"""Every launcher's environment gives the same answer, and a broken one a clear error."""

from __future__ import annotations

import pytest
from cogvideox.errors import ConfigError
from cogvideox.parallel.launch import Launch, read_launch


def test_plain_python_is_one_process():
    assert read_launch({}) == Launch()
    assert read_launch({"WORLD_SIZE": "1"}) == Launch()


def test_torchrun_and_deepspeed_variables():
    environment = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "1234",
    }
    assert read_launch(environment) == Launch(5, 8, 1, "node0", 1234)


def test_open_mpi_variables():
    environment = {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "MASTER_ADDR": "node0",
    }
    assert read_launch(environment) == Launch(3, 4, 1, "node0")
    one_machine = {**environment, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    del one_machine["MASTER_ADDR"]
    assert read_launch(one_machine).address == "127.0.0.1"


def test_ranks_without_a_local_rank_go_round_the_devices():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "node0"}
    assert read_launch(environment, local_devices=4).local_rank == 1


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set but RANK is not: start several processes with torchrun"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 must lie in 0..1 \(WORLD_SIZE=2\)"),
        ({"RANK": "first"}, "RANK='first' must be a number"),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "MASTER_ADDR is not set: give the address of the machine that runs rank 0",
        ),
    ],
)
def test_contradictions_are_named(environment, message):
    with pytest.raises(ConfigError, match=message):
        read_launch(environment)
