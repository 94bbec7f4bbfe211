"""Builds SAT's BaseTransformer without its side effects on the process.

SAT's layers ask for process groups while they are built, its BaseModel starts one by itself and reseeds every
random generator, and its word and position embeddings have no use here. All of that is dealt with in this file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from sat.model.transformer import BaseTransformer
from sat.mpu import ColumnParallelLinear, RowParallelLinear
from torch import nn

from cogvideox.transformer.linear import Linear
from cogvideox.transformer.shape import NetworkShape
from sat import mpu

# Block norms and the norm after the last block; SAT's default, which also overrides what callers pass for a layer.
LAYERNORM_EPS = 1e-5
# Rows of SAT's own position table. The sin/cos models delete the table; rotary ones keep it, unused, in checkpoints.
_UNUSED_POSITIONS = 64


def build_transformer(network: NetworkShape) -> BaseTransformer:
    """SAT's stack of layers for `network`, on torch's default device (so `with torch.device("meta")` works).

    When processes run under torch.distributed, all of them must build at the same point: SAT makes its groups together.
    """
    with groups_of_one():
        transformer = BaseTransformer(
            num_layers=network.num_layers,
            vocab_size=1,
            hidden_size=network.hidden_size,
            num_attention_heads=network.num_attention_heads,
            max_sequence_length=_UNUSED_POSITIONS,
            layernorm_epsilon=LAYERNORM_EPS,
            layernorm=partial(nn.LayerNorm, dtype=network.dtype),
            params_dtype=network.dtype,
            device=torch.get_default_device(),
        )
        _replace_parallel_linears(transformer)
    return transformer


@contextmanager
def own_random_state() -> Iterator[None]:
    """Draws inside depend on torch's CPU generator outside; all generators are afterwards as they were before."""
    device = torch.get_default_device()
    gpus = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        seed = int(torch.randint(2**62, (1,), device="cpu").item())
        # Not torch.manual_seed, which reseeds every GPU as well.
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


@contextmanager
def groups_of_one() -> Iterator[None]:
    """SAT's model-parallel groups of size one for the time of the build, and nothing left behind."""
    started = not dist.is_initialized()
    if started:
        # A store in memory: no port, no environment variables.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    prepared = not mpu.model_parallel_is_initialized()
    sat_logger = logging.getLogger("sat")
    level = sat_logger.level
    sat_logger.setLevel(logging.WARNING)  # it announces the sizes of its groups
    try:
        if prepared:
            mpu.initialize_model_parallel(1)
            # Who is first done below closes its groups: not while another process still connects to the last one.
            if dist.get_world_size() > 1:
                dist.all_reduce(torch.zeros(1, device="cpu"))
        assert mpu.get_model_parallel_world_size() == 1, "layers are never split over processes"
        yield
    finally:
        sat_logger.setLevel(level)
        if prepared and mpu.model_parallel_is_initialized():
            # SAT only forgets them, and each keeps three threads for as long as the process lives.
            groups = mpu.get_model_parallel_group(), mpu.get_data_parallel_group(), mpu.initialize.get_node_group()
            mpu.destroy_model_parallel()
            for group in groups:
                dist.destroy_process_group(group)
        if started:
            dist.destroy_process_group()


def _replace_parallel_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, (ColumnParallelLinear, RowParallelLinear)):
            setattr(module, name, Linear.adopt(child.weight, child.bias))
        else:
            _replace_parallel_linears(child)
