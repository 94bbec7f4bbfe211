"""What a process needs to go on beside the weights: `<iteration>/training_state/rank_<n>.pt`.

The file is read without trust: a damaged one, or one of something else, is one line that says where to go on from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.weights.atomic import failed_write
from cogvideox.weights.integrity import earlier_iteration
from cogvideox.weights.runs import STATE_FOLDER
from cogvideox.weights.safetensors_stream import WrittenFile
from cogvideox.weights.torch_file import load_file
from cogvideox.weights.torch_save import Whole, save_hashed

_FORMAT = 1


@dataclass(frozen=True)
class TrainingState:
    """step, data: as `checkpoint.Progress`; position, taken: samples taken by then, all and by bucket.

    processes: over how many the optimizer's state is split. optimizer: what `TrainEngine.capture` gave.
    """

    step: int
    position: int
    data: str
    processes: int
    optimizer: dict[str, Any]
    taken: dict[str, int] = field(default_factory=dict)  # of states before buckets: nothing


def state_file(folder: Path, rank: int) -> Path:
    """Of one process, in an iteration folder."""
    return folder / STATE_FOLDER / f"rank_{rank:05d}.pt"


def write_state(folder: Path, rank: int, state: TrainingState, needed_bytes: int | None = None) -> WrittenFile:
    """Into a temporary iteration folder; the result's name is relative to it.

    Tensors come from their device one by one. needed_bytes: of all files of the iteration, to be named where the disk
    is full. Raises: CheckpointError.
    """
    file = state_file(folder, rank)
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise failed_write(file.parent, error, folder, needed_bytes) from error
    written = save_hashed(file, {"format": _FORMAT, **vars(state)}, Whole(folder, needed_bytes))
    return WrittenFile(f"{STATE_FOLDER}/{written.name}", written.num_bytes, written.xxh3_128)


def read_state(folder: Path, rank: int) -> TrainingState:
    """Of one process. Raises: CheckpointError for a file that is missing, damaged or no training state."""
    file = state_file(folder, rank)
    try:
        content = load_file(file)
        problem = _problem(content)
    except CheckpointError as error:
        raise CheckpointError(f"args.resume: {error}{_way_out(folder)}") from error
    if problem is not None:
        raise CheckpointError(
            f"args.resume: {file} is no training state of this format ({problem}): copy it again{_way_out(folder)}"
        )
    return TrainingState(**{name: content[name] for name in TrainingState.__dataclass_fields__ if name in content})


def _way_out(folder: Path) -> str:
    earlier = earlier_iteration(folder)
    new_run = f"start a new run from its weights with args.load={folder}"
    return f", {new_run}" if earlier is None else f", resume from an earlier iteration with args.resume={earlier}"


def _problem(content: object) -> str | None:
    """What is wrong with it in a word or two; None if nothing is."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, a dict is expected"
    if content.get("format") != _FORMAT:
        return f"its format is {content.get('format')!r}, this version reads {_FORMAT}"
    least = {"step": 0, "position": 0, "processes": 1}
    for name, low in least.items():
        if type(content.get(name)) is not int or content[name] < low:
            return f"{name!r} is {_shown(content, name)}, a number from {low} is expected"
    if not isinstance(content.get("data"), str):
        return f"'data' is {_shown(content, 'data')}, a text is expected"
    taken = content.get("taken", {})
    if not isinstance(taken, dict) or not all(type(each) is int and each >= 0 for each in taken.values()):
        return "'taken' is no number for each bucket"
    return _problem_of_optimizer(content.get("optimizer"))


def _problem_of_optimizer(optimizer: object) -> str | None:
    kinds = {"kind": str, "base": dict, "masters": list, "loss_scale": dict}
    if not isinstance(optimizer, dict):
        return f"'optimizer' is a {type(optimizer).__name__}, a dict is expected"
    for name, kind in kinds.items():
        if not isinstance(optimizer.get(name), kind):
            return f"{name!r} of its optimizer is {_shown(optimizer, name)}, a {kind.__name__} is expected"
    odd = next((each for each in optimizer["masters"] if not _is_float_tensor(each)), None)
    if odd is not None:
        return f"a master weight is a {_kind_of(odd)}, a tensor of numbers is expected"
    if any(type(value) not in (int, float, bool) for value in optimizer["loss_scale"].values()):
        return "the loss scale is no number"
    groups, state = (optimizer["base"].get(name) for name in ("param_groups", "state"))
    if not isinstance(groups, list) or not all(_is_group(group) for group in groups):
        return "'param_groups' of its optimizer is no list of parameter groups"
    if not isinstance(state, dict):
        return "'state' of its optimizer is no dict"
    odd = next((number for number, moments in state.items() if not _is_moments(moments)), None)
    return None if odd is None else f"the moments of parameter {odd!r} are no named tensors of numbers"


def _is_group(group: object) -> bool:
    numbers = group.get("params") if isinstance(group, Mapping) else None
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _is_moments(moments: object) -> bool:
    """What Adam keeps of a parameter; nothing before its first step."""
    if not isinstance(moments, Mapping):
        return False
    numbers = all(_is_float_tensor(value) or type(value) in (int, float) for value in moments.values())
    return numbers and (not moments or all(isinstance(moments.get(name), Tensor) for name in ("exp_avg", "exp_avg_sq")))


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _shown(content: Mapping[str, object], name: str) -> str:
    value = content.get(name)
    return repr(value) if value is None or isinstance(value, int | float) else f"a {_kind_of(value)}"


def _kind_of(value: object) -> str:
    return f"tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
