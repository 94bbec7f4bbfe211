"""GPUs before torch is imported: whether there is one, since `--check` answers without torch, and how torch will hand
out its memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import MutableMapping, Sequence

from cogvideox.errors import ConfigError

# Versions of torch from 2.9 on read the first, older ones the second, those for ROCm the third.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def choose_allocator(environment: MutableMapping[str, str]) -> None:
    """Let torch's allocator join and enlarge its blocks, unless the user has said something about it.

    The autoencoder and the transformer take turns with blocks of many GiB, and of other sizes for every bucket; without
    it the memory of one is of no use to the other. Torch reads it when CUDA starts; on the CPU nothing does.
    """
    if not any(environment.get(name, "").strip() for name in _ALLOCATOR):
        environment.update(dict.fromkeys(_ALLOCATOR[:2], "expandable_segments:True"))


def has_gpu() -> bool:
    """Whether CUDA would find a device that it may use (CUDA_VISIBLE_DEVICES counts), or ROCm's driver is there."""
    if os.path.exists("/dev/kfd"):
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def device_index(rank: int, local_rank: int, count: int) -> int:
    """Which of the `count` GPUs that a process sees is its own.

    Where each sees one only, as tasks of srun with a GPU of their own do, that one, whatever its number on the machine:
    `refuse_shared` finds out whether they are really several. Raises: ConfigError for more processes than GPUs.
    """
    if count == 1:
        return 0
    if local_rank >= count:
        raise ConfigError(
            f"process {rank} is number {local_rank} on this machine and sees {count} CUDA devices; start at most one "
            "process per device, or let each see one device only (srun --gpus-per-task=1)"
        )
    return local_rank


def leave_device_to_deepspeed(environment: MutableMapping[str, str], index: int) -> None:
    """DeepSpeed takes the device with the number of LOCAL_RANK, which must be Open MPI's where that is set."""
    environment["LOCAL_RANK"] = str(index)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environment:
        environment["OMPI_COMM_WORLD_LOCAL_RANK"] = str(index)


def refuse_shared(owners: Sequence[tuple[str, str]]) -> None:
    """owners: machine and GPU of each process, in rank order. Raises: ConfigError where two have the same."""
    for rank, owner in enumerate(owners):
        first = owners.index(owner)
        if first != rank:
            raise ConfigError(
                f"processes {first} and {rank} have the same CUDA device ({owner[1]} of {owner[0]}); start at most one "
                "process per device, and look at CUDA_VISIBLE_DEVICES of each"
            )
