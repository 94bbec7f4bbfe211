"""Which process this is, read from what the launcher left in the environment.

Launchers: plain `python` (nothing set), `torchrun`, `deepspeed --hostfile` (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*),
and Open MPI (OMPI_COMM_WORLD_*).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cogvideox.errors import ConfigError

DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Launch:
    """Place of one process among all.

    rank, world_size: over all machines; local_rank: on this machine. address, port: where rank 0 listens.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    def as_environment(self) -> dict[str, str]:
        """The variables that DeepSpeed and SAT read for themselves."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def read_launch(environment: Mapping[str, str], local_devices: int = 0) -> Launch:
    """Find out which process this is.

    local_devices: accelerators on this machine, used to place ranks when the launcher doesn't say; 0 without any.

    Raises:
        ConfigError: a variable is missing or not a number, or rank and world size contradict each other.
    """
    if "RANK" not in environment and "OMPI_COMM_WORLD_RANK" in environment:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    else:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    world_size = _number(environment, names[1], default=1)
    if world_size > 1 and names[0] not in environment:
        raise ConfigError(
            f"{names[1]}={world_size} is set but {names[0]} is not: start several processes with torchrun or "
            f"deepspeed, or unset {names[1]} for one process"
        )
    rank = _number(environment, names[0], default=0)
    if not 0 <= rank < world_size:
        raise ConfigError(f"{names[0]}={rank} must lie in 0..{world_size - 1} ({names[1]}={world_size})")
    local_rank = _number(environment, names[2], default=rank % local_devices if local_devices else 0)
    if world_size > 1 and "MASTER_ADDR" not in environment and not _on_one_machine(environment, world_size):
        raise ConfigError("MASTER_ADDR is not set: give the address of the machine that runs rank 0 (and MASTER_PORT)")
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    return Launch(rank, world_size, local_rank, address, _number(environment, "MASTER_PORT", default=DEFAULT_PORT))


def _on_one_machine(environment: Mapping[str, str], world_size: int) -> bool:
    local_size = environment.get("LOCAL_WORLD_SIZE", environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""))
    return local_size == str(world_size)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise ConfigError(f"environment variable {name}={text!r} must be a number")
    return int(text)
