"""What DeepSpeed is told before it starts, and the optimizer state that it spreads over ranks.

ZeRO 0 keeps one whole copy of the optimizer state per process; ZeRO 1 and 2 keep a slice each, as flat 1-D tensors. A
saved state is plain numbers and tensors, so that it can be read back with `weights_only=True`.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from cogvideox.errors import CheckpointError

# Where each DeepSpeed optimizer keeps its fp32 master weights, by class name. A plain torch optimizer has
# none.
_MASTER_ATTRIBUTES = {
    "DeepSpeedZeroOptimizer": "single_partition_of_fp32_groups",
    "BF16_Optimizer": "fp32_groups_flat_partition",
    "FP16_Optimizer": "fp32_groups_flat",
    "FP16_UnfusedOptimizer": "fp32_groups",
}
_SCALE_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def prepare_deepspeed(device: torch.device) -> None:
    """Make DeepSpeed use `device`, keep it from compiling anything at start, and quiet its log.

    On CPU it would build a shared-memory collective with g++ (19 s on first use) that only its inference code calls;
    with the entry preset to "not available" it goes through the running process group.
    """
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator, set_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if get_accelerator().device_name() != device.type:
        if device.type == "cpu":
            from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator as Accelerator
        else:
            from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator as Accelerator
        set_accelerator(Accelerator())
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def forget_initial_step(engine: Any) -> None:
    """Undo the step with zero gradients that DeepSpeed's 16-bit optimizers run to allocate their state.

    It would count as step 1 in Adam's bias correction. The state is allocated again by the first real step.
    """
    engine.basic_optimizer.state.clear()


def capture_optimizer(engine: Any) -> dict[str, Any]:
    """Optimizer state of this process: moments, fp32 master weights and loss scale."""
    return {
        "kind": type(engine.optimizer).__name__,
        "base": engine.basic_optimizer.state_dict(),
        "masters": [master.detach() for master in _masters(engine)],
        "loss_scale": {name: getattr(scaler, name) for scaler in _scalers(engine) for name in _present(scaler)},
    }


def restore_optimizer(engine: Any, state: dict[str, Any]) -> None:
    """Put a captured state back.

    Raises:
        CheckpointError: it was saved with another precision, ZeRO stage, number of processes or set of
        trainables.
    """
    kind = type(engine.optimizer).__name__
    if state["kind"] != kind:
        raise CheckpointError(
            f"the optimizer state was saved by {state['kind']}, this run uses {kind}: resume with the precision and "
            "ZeRO stage of the saved run, or start a new run with args.load"
        )
    masters = _masters(engine)
    saved_shapes, shapes = [list(map(_shape, each)) for each in (state["masters"], masters)]
    if saved_shapes != shapes:
        raise CheckpointError(
            f"the optimizer state holds master weights of shapes {_brief(saved_shapes)}, this run has "
            f"{_brief(shapes)}: resume with the trainable weights and number of processes of the saved run"
        )
    try:
        engine.basic_optimizer.load_state_dict(state["base"])
    except ValueError as error:  # other parameter groups
        raise CheckpointError(f"the optimizer state does not fit this run's trainable weights: {error}") from error
    with torch.no_grad():
        for master, saved in zip(masters, state["masters"], strict=True):
            master.copy_(saved)
    for scaler in _scalers(engine):
        for name in _present(scaler):
            setattr(scaler, name, state["loss_scale"].get(name, getattr(scaler, name)))


def _masters(engine: Any) -> list[Tensor]:
    attribute = _MASTER_ATTRIBUTES.get(type(engine.optimizer).__name__)
    if attribute is None:
        return []
    flat: list[Tensor] = []
    for group in getattr(engine.optimizer, attribute):
        flat.extend([group] if isinstance(group, Tensor) else group)
    return flat


def _scalers(engine: Any) -> list[Any]:
    names = ("loss_scaler", "loss_scale_config")
    return [getattr(engine.optimizer, name) for name in names if hasattr(engine.optimizer, name)]


def _present(scaler: Any) -> list[str]:
    return [name for name in _SCALE_FIELDS if getattr(scaler, name, None) is not None]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _brief(shapes: list[tuple[int, ...]]) -> str:
    return f"{shapes[:3]}{'' if len(shapes) <= 3 else f' and {len(shapes) - 3} more'}"
