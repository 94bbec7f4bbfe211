"""What DeepSpeed is given before it starts, and the optimizer state that it spreads over ranks.

ZeRO 0 keeps one whole copy of the optimizer state per process; ZeRO 1 and 2 keep a slice each, as flat 1-D tensors. A
saved state is plain numbers and tensors, so that it can be read back with `weights_only=True`.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cogvideox.errors import CheckpointError, ConfigError

# Where each DeepSpeed optimizer keeps its fp32 master weights, by class name. A plain torch optimizer has
# none.
_MASTER_ATTRIBUTES = {
    "DeepSpeedZeroOptimizer": "single_partition_of_fp32_groups",
    "BF16_Optimizer": "fp32_groups_flat_partition",
    "FP16_Optimizer": "fp32_groups_flat",
}
# Of masters that this program keeps itself. A stored name: of DeepSpeed's class that kept the same tensors for earlier
# versions, so their states fit.
_OWN_MASTERS = "FP16_UnfusedOptimizer"
# They keep the same slices, as long as the weights stay in their order; the precision of sums decides which one it is.
_SAME_SLICES = {"DeepSpeedZeroOptimizer", "BF16_Optimizer"}
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


def build_kernel(*, for_offload: bool) -> None:
    """Load the Adam that DeepSpeed brings along, compiled at its first use on a machine.

    for_offload: the one for the CPU. Raises: ConfigError where it can't be compiled.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException

    failures = (OSError, RuntimeError, ImportError, subprocess.SubprocessError)
    try:
        (CPUAdamBuilder if for_offload else FusedAdamBuilder)().load()
    except (*failures, CUDAMismatchException, MissingCUDAException) as error:
        key, instead = "optimizer.params.torch_adam: false", "set it to true: torch's fused kernel is as fast"
        if for_offload:
            key = "zero_optimization.offload_optimizer"
            instead = "leave it out: ZeRO 2 over more GPUs, or LoRA, takes less memory as well"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"deepspeed.{key} takes a kernel that DeepSpeed compiles, and that failed ({reason}). It needs ninja, a "
            "C++ compiler and, on a GPU, the CUDA toolkit of torch's CUDA version (nvcc, found through CUDA_HOME). "
            f"Install them, or {instead}"
        ) from error


def capture_optimizer(engine: Any, own_masters: Sequence[Tensor] | None = None) -> dict[str, Any]:
    """Optimizer state of this process: moments, fp32 master weights and loss scale.

    own_masters: masters that DeepSpeed doesn't know of (training.master_weights). The tensors are the live ones.
    """
    return {
        "kind": _kind(engine, own_masters),
        "base": engine.basic_optimizer.state_dict(),
        "masters": [master.detach() for master in _masters(engine, own_masters)],
        "loss_scale": {name: getattr(scaler, name) for scaler in _scalers(engine) for name in _present(scaler)},
    }


def restore_optimizer(engine: Any, state: dict[str, Any], own_masters: Sequence[Tensor] | None = None) -> None:
    """Put a captured state back.

    Raises:
        CheckpointError: it was saved with another precision, ZeRO stage, number of processes or set of
        trainables.
    """
    kind = _kind(engine, own_masters)
    if state["kind"] != kind and not ({state["kind"], kind} <= _SAME_SLICES and not _is_reordered(engine)):
        raise CheckpointError(
            f"the optimizer state was saved by {state['kind']}, this run uses {kind}: resume with the precision and "
            "ZeRO stage of the saved run, or start a new run with args.load"
        )
    masters = _masters(engine, own_masters)
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


def _kind(engine: Any, own_masters: Sequence[Tensor] | None) -> str:
    return type(engine.optimizer).__name__ if own_masters is None else _OWN_MASTERS


def _is_reordered(engine: Any) -> bool:
    return bool(engine.zero_round_robin_gradients())


def _masters(engine: Any, own_masters: Sequence[Tensor] | None) -> list[Tensor]:
    if own_masters is not None:
        return list(own_masters)
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
