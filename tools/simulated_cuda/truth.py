"""What the host reads of tensors without contents.

Integers are read as 0 and floats as 1.0, since programs divide by what they count. Truth values are followed from
comparisons on, as if all held zeros: 0 == 0, 0 is no infinity, so a check that weights are finite or that nothing
overflowed comes out as in a run where all is well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_OF_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::logical_and": lambda a, b: a and b,
    "aten::bitwise_and": lambda a, b: a and b,
    "aten::mul": lambda a, b: a and b,
    "aten::logical_or": lambda a, b: a or b,
    "aten::bitwise_or": lambda a, b: a or b,
}
_OPPOSITE = ("aten::logical_not", "aten::bitwise_not")
_FILLED = {"aten::ones": True, "aten::full": None}


def read(tensor: Tensor) -> bool | float | int:
    """The single element."""
    value = _value(tensor)
    return bool(value) if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else int(value)


def follow(func: Any, args: tuple[Any, ...], result: Any) -> None:
    """Note the truth value of what an operator gave."""
    if isinstance(result, Tensor):
        if result.dtype == torch.bool:
            result.truth = _result(func._schema.name, args)  # type: ignore[attr-defined]
    elif isinstance(result, tuple | list):
        for each in result:
            if isinstance(each, Tensor) and each.dtype == torch.bool:
                each.truth = bool(_value(args[0]))  # type: ignore[attr-defined]


def _result(name: str, args: tuple[Any, ...]) -> bool:
    name = name.removesuffix("_")
    if name in _OF_TWO:
        return bool(_OF_TWO[name](_value(args[0]), _value(args[1])))
    if name in _OPPOSITE:
        return not _value(args[0])
    if name in _FILLED:
        return bool(args[1]) if name == "aten::full" else True
    return bool(args) and bool(_value(args[0]))


def _value(value: Any) -> Any:
    """Of a tensor, or of the first of several; a number is itself."""
    if isinstance(value, tuple | list) and value:
        return _value(value[0])
    return getattr(value, "truth", 0) if isinstance(value, Tensor) else value
