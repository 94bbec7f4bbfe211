"""Which process this is, read from what the launcher left in the environment.

In this order, the first that speaks: RANK, WORLD_SIZE, LOCAL_RANK (torchrun, deepspeed, tools/launch.py, scripts), Open
MPI, MVAPICH, other MPIs (PMI), and Slurm's srun. A variable that holds nothing counts as not set. Nothing set is one
process, and so is a batch script or a shell inside a Slurm allocation: only srun starts tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from cogvideox.errors import ConfigError

DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Launch:
    """Place of one process among all.

    rank, world_size: over all machines; local_rank: on this machine, None where nobody says. address, port: where
    rank 0 listens.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    def as_environment(self) -> dict[str, str]:
        """The variables that DeepSpeed and SAT read for themselves."""
        variables = {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }
        return variables if self.local_rank is None else {**variables, "LOCAL_RANK": str(self.local_rank)}


@dataclass(frozen=True)
class _Launcher:
    """The variables of one launcher. Each of `local_rank` and `local_size` may have several names."""

    name: str
    rank: str
    size: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


_VARIABLES = _Launcher("the environment", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",))
_TASK_LAUNCHERS = (
    _Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        "MVAPICH",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        "MPI",
        "PMI_RANK",
        "PMI_SIZE",
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"),
    ),
    # Not SLURM_NTASKS: a batch script has it too, and is alone.
    _Launcher("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), ()),
)


def adopt_launch(environment: MutableMapping[str, str]) -> None:
    """Leave what any launcher says in the variables that log, configuration, DeepSpeed and SAT look at (RANK,
    WORLD_SIZE, ...), and nothing for one process. Comes first in a program.

    Raises: ConfigError, see read_launch.
    """
    launch = read_launch(environment)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name, "").strip():
            environment.pop(name, None)
    if launch.world_size > 1:
        environment.update(launch.as_environment())


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Find out which process this is.

    Raises:
        ConfigError: a variable is missing or not a number, rank and world size contradict each other, or each of
        several tasks would take itself for the only one.
    """
    filled = {name: text for name, value in environment.items() if (text := value.strip())}
    tasks = next((each for each in _TASK_LAUNCHERS if _has_started_tasks(filled, each)), None)
    launcher = _VARIABLES if "RANK" in filled or "WORLD_SIZE" in filled or tasks is None else tasks
    world_size = _number(filled, launcher.size, default=1)
    if world_size < 1:
        raise ConfigError(f"{launcher.size}={world_size} must be at least 1")
    if launcher is _VARIABLES and tasks is not None:
        _refuse_lone_tasks(filled, world_size, tasks)
    if world_size > 1 and launcher.rank not in filled:
        raise ConfigError(
            f"{launcher.size}={world_size} is set but {launcher.rank} is not: start several processes with torchrun or "
            f"deepspeed, or unset {launcher.size} for one process"
        )
    rank = _number(filled, launcher.rank, default=0)
    if rank > 0 and launcher.size not in filled:
        raise ConfigError(
            f"{launcher.rank}={rank} is set but {launcher.size} is not: set both, or unset {launcher.rank}"
        )
    if not 0 <= rank < world_size:
        raise ConfigError(f"{launcher.rank}={rank} must lie in 0..{world_size - 1} ({launcher.size}={world_size})")
    local = next((name for name in launcher.local_rank if name in filled), None)
    local_rank = None if local is None else _number(filled, local, default=0)
    if world_size == 1:
        return Launch(local_rank=local_rank)
    return Launch(rank, world_size, local_rank, _address(filled, launcher, world_size), _port(filled, launcher))


def _has_started_tasks(environment: Mapping[str, str], launcher: _Launcher) -> bool:
    """Whether this process is one of several tasks of the launcher. `srun --pty` gives a shell in the first of them."""
    if launcher.name == "Slurm" and "SLURM_PTY_PORT" in environment:
        return False
    return launcher.rank in environment and _number(environment, launcher.size, default=1) > 1


def _refuse_lone_tasks(environment: Mapping[str, str], world_size: int, tasks: _Launcher) -> None:
    """WORLD_SIZE=1, say from a container's image, in each of several tasks: they would train side by side, all the
    same. Launchers of processes inside of tasks are another matter."""
    if world_size > 1 or any(name in environment for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE")):
        return
    raise ConfigError(
        f"{tasks.name} has started {environment[tasks.size]} tasks ({tasks.size}), but RANK or WORLD_SIZE in the "
        "environment says that there is one process: unset RANK and WORLD_SIZE to train with all of them together, or "
        "start one task"
    )


def _address(environment: Mapping[str, str], launcher: _Launcher, world_size: int) -> str:
    if "MASTER_ADDR" in environment:
        return environment["MASTER_ADDR"]
    if any(environment.get(name) == str(world_size) for name in launcher.local_size):
        return "127.0.0.1"
    if launcher.name == "Slurm":
        if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
            return "127.0.0.1"
        nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
        if first := _first_host(nodes):
            return first
    raise ConfigError("MASTER_ADDR is not set: give the address of the machine that runs rank 0 (and MASTER_PORT)")


def _first_host(nodes: str) -> str:
    """Of Slurm's short form of a list: gpu[03-05,9],cpu1 begins with gpu03."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\])?([^,]*)", nodes)
    return "" if match is None else match[1] + (match[2] or "") + match[3]


def _port(environment: Mapping[str, str], launcher: _Launcher) -> int:
    """Steps of Slurm that share a machine get ports of their own."""
    default = DEFAULT_PORT
    if launcher.name == "Slurm":
        words = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        job, step = (int(word) if word.isdigit() else 0 for word in words)
        default = 20000 + (job * 10 + step) % 10000
    port = _number(environment, "MASTER_PORT", default)
    if not 0 < port < 65536:
        raise ConfigError(f"environment variable MASTER_PORT={port} must lie between 1 and 65535")
    return port


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"environment variable {name}={text!r} must be a number")
    return int(text)
