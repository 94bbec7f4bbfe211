"""Every launcher's environment gives the same answer, and a broken one a clear error."""

from __future__ import annotations

import pytest
from cogvideox.errors import ConfigError
from cogvideox.parallel.launch import Launch, adopt_launch, read_launch

ALONE = Launch()
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "1234",
    "TORCHELASTIC_RUN_ID": "none",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
# Of one of four tasks that `srun` has started on two machines, inside of a batch job.
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
SLURM_PORT = 20000 + 47112 % 10000


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


ENVIRONMENTS = {
    "plain python": ({}, ALONE),
    "one process by hand": ({"WORLD_SIZE": "1"}, ALONE),
    "torchrun": (TORCHRUN, Launch(5, 8, 1, "node0", 1234)),
    "variables set to nothing": (dict.fromkeys(TORCHRUN, ""), ALONE),
    "variables set to blanks": (dict.fromkeys(TORCHRUN, " "), ALONE),
    "a local rank of nothing": ({**TORCHRUN, "LOCAL_RANK": ""}, Launch(5, 8, None, "node0", 1234)),
    "torchrun of one process": (
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        Launch(0, 1, 0),
    ),
    "mpirun with an address": ({**OPEN_MPI, "MASTER_ADDR": "node0"}, Launch(3, 4, 1, "node0")),
    "mpirun on one machine": ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, Launch(3, 4, 1)),
    "mpirun of one process": (
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        ALONE,
    ),
    "mpirun with empty variables of others": (
        {**OPEN_MPI, "RANK": "", "WORLD_SIZE": "", "MASTER_ADDR": "node0"},
        Launch(3, 4, 1, "node0"),
    ),
    "MVAPICH": (
        {
            "MV2_COMM_WORLD_RANK": "1",
            "MV2_COMM_WORLD_SIZE": "2",
            "MV2_COMM_WORLD_LOCAL_RANK": "1",
            "MV2_COMM_WORLD_LOCAL_SIZE": "2",
        },
        Launch(1, 2, 1),
    ),
    "MPICH and Intel MPI": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
        Launch(1, 2, 1),
    ),
    "srun --mpi=pmi2": (
        {**SLURM, "PMI_RANK": "3", "PMI_SIZE": "4", "MASTER_ADDR": "gpu03"},
        Launch(3, 4, 1, "gpu03"),
    ),
    "srun on two machines": (SLURM, Launch(3, 4, 1, "gpu03", SLURM_PORT)),
    "srun on one machine": ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, Launch(3, 4, 1, "127.0.0.1", SLURM_PORT)),
    "srun with an address": (
        {**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "7"},
        Launch(3, 4, 1, "head", 7),
    ),
    "srun, another list": (
        {**SLURM, "SLURM_STEP_NODELIST": "a-node7-ib,b[1-3]"},
        Launch(3, 4, 1, "a-node7-ib", SLURM_PORT),
    ),
    "srun of one task": ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ALONE),
    "a batch script for four tasks, without srun": (
        {**without(SLURM, "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"), "SLURM_PROCID": "0"},
        ALONE,
    ),
    "salloc for one task": ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ALONE),
    "srun --pty": ({**SLURM, "SLURM_PROCID": "0", "SLURM_PTY_PORT": "40000"}, ALONE),
    "torchrun in a task of srun": ({**SLURM, **TORCHRUN}, Launch(5, 8, 1, "node0", 1234)),
    "mpirun in a batch job": (
        {**SLURM, **OPEN_MPI, "SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "gpu03"},
        Launch(3, 4, 1, "gpu03"),
    ),
    "a script that translates Slurm's variables": (
        {**SLURM, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03"},
        Launch(3, 4, 1, "gpu03"),
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_launchers(name):
    environment, expected = ENVIRONMENTS[name]
    assert read_launch(environment) == expected


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_adopted_reads_the_same(name):
    """Log, configuration, DeepSpeed and SAT look at RANK and its like only."""
    environment, expected = ENVIRONMENTS[name]
    adopted = dict(environment)
    adopt_launch(adopted)
    assert int(adopted.get("RANK", "0")) == expected.rank and int(adopted.get("WORLD_SIZE", "1")) == expected.world_size
    assert read_launch(adopted) == expected
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert "" not in {adopted.get(each, "unset").strip() for each in names}


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set but RANK is not: start several processes with torchrun"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 must lie in 0..1 \(WORLD_SIZE=2\)"),
        ({"RANK": "1"}, "RANK=1 is set but WORLD_SIZE is not: set both, or unset RANK"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0 must be at least 1"),
        ({"RANK": "first"}, "RANK='first' must be a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1' must be a number"),
        ({"RANK": "²", "WORLD_SIZE": "8"}, "RANK='²' must be a number"),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK='x' must be a number"),
        ({**TORCHRUN, "MASTER_PORT": "99999"}, "MASTER_PORT=99999 must lie between 1 and 65535"),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "MASTER_ADDR is not set: give the address of the machine that runs rank 0",
        ),
        (OPEN_MPI, "MASTER_ADDR is not set"),
        (without(SLURM, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"), "MASTER_ADDR is not set"),
        (
            {**SLURM, "WORLD_SIZE": "1"},
            r"Slurm has started 4 tasks \(SLURM_STEP_NUM_TASKS\), but RANK or WORLD_SIZE in the environment says",
        ),
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "1"}, "Open MPI has started 4 tasks .* unset RANK and WORLD_SIZE"),
    ],
)
def test_contradictions_are_named(environment, message):
    with pytest.raises(ConfigError, match=message):
        read_launch(environment)
