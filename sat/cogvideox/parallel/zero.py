"""What DeepSpeed is told before it starts, and the optimizer state that it spreads over ranks.

ZeRO 0 keeps one whole copy of the optimizer state per process; ZeRO 1 and 2 keep a slice each, as flat 1-D tensors. A
saved state is plain numbers and tensors, so that it can be read back with `weights_only=True`.
"""

from __future__ import annotations

import math
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
_MISFIT = "the optimizer state does not fit this run's trainable weights"
_SCALE_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def prepare_deepspeed(device: torch.device) -> None:
    """Make DeepSpeed use `device`, and keep it from compiling anything at start.

    On CPU it would build a shared-memory collective with g++ (19 s on first use) that only its inference code calls;
    with the entry preset to "not available" it goes through the running process group.
    """
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator, set_accelerator

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
    _check_moments(engine.basic_optimizer, state["base"])
    try:
        engine.basic_optimizer.load_state_dict(state["base"])
    except (ValueError, TypeError, LookupError, RuntimeError) as error:  # other parameter groups
        raise CheckpointError(f"{_MISFIT}: {str(error).splitlines()[0]}") from error
    with torch.no_grad():
        for master, saved in zip(masters, state["masters"], strict=True):
            master.copy_(saved)
    for scaler in _scalers(engine):
        for name in _present(scaler):
            setattr(scaler, name, state["loss_scale"].get(name, getattr(scaler, name)))


def _check_moments(optimizer: Any, saved: dict[str, Any]) -> None:
    """Raises: CheckpointError for moments of another shape, and for settings that are no numbers where ours are."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=False):  # other counts: load_state_dict says it
        for name, value in saved["state"].get(number, {}).items():
            if not isinstance(value, Tensor):
                continue
            fits = value.shape == parameter.shape if name.startswith("exp_avg") else value.numel() == 1
            if not fits:
                raise CheckpointError(
                    f"{_MISFIT}: {name} of parameter {number} has the shape {list(value.shape)}, "
                    f"the weights {list(parameter.shape)}"
                )
    for ours, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        for name in ours.keys() & theirs.keys() - {"params"}:
            if not _is_alike(ours[name], theirs[name]):
                raise CheckpointError(
                    f"{_MISFIT}: its {name} is {theirs[name]!r:.40}, this run's is {ours[name]!r:.40}"
                )


def _is_alike(ours: object, theirs: object) -> bool:
    """Whether two settings are of one kind: switches (None is "as torch likes"), numbers, or tuples of numbers."""
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        return len(ours) == len(theirs) and all(map(_is_alike, ours, theirs))
    switches, numbers = (bool, type(None)), (int, float)
    if isinstance(ours, switches):
        return isinstance(theirs, switches)
    if isinstance(ours, numbers):
        return isinstance(theirs, numbers) and not isinstance(theirs, bool) and math.isfinite(theirs)
    return isinstance(theirs, type(ours))


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
