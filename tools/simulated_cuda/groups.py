"""One process that takes itself for the first of several."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from cogvideox.errors import UserError
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.stopping import Stopped
from torch.testing._internal.distributed.fake_pg import FakeStore


class OneOfMany(ProcessGroups):
    """What the others have is what this process has, and none of them fails."""

    def broadcast_object(self, value: Any) -> Any:
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]

    def agree(self, error: UserError | Stopped | None) -> None:
        if error is not None:
            raise error


def start_groups(world_size: int) -> OneOfMany:
    """Collectives on tensors do nothing (torch's own fake backend). One number of processes for the whole life of this
    one: DeepSpeed keeps the groups that it made."""
    os.environ.update(RANK="0", WORLD_SIZE=str(world_size), LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="0")
    os.environ.update(DS_ACCELERATOR="cuda", SAT_LOGLEVEL="ERROR")
    if not dist.is_initialized():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    assert dist.get_world_size() == world_size, "another number of processes needs another process"
    return OneOfMany(0, world_size, 0, torch.device("cuda", 0))
