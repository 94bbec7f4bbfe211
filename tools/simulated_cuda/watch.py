"""Where the host waits for the device, and what is copied between them."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from simulated_cuda.phases import PhasedMode
from simulated_cuda.tensors import DeviceTensors
from simulated_cuda.torch_cuda import STATE

_aten = torch.ops.aten
_READS = {
    _aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.nonzero.default, _aten.equal.default,
    _aten.masked_select.default, _aten._unique2.default,
}  # fmt: skip
_OURS, _DEEPSPEED = "/sat/cogvideox/", "/site-packages/deepspeed/"


class Wait(NamedTuple):
    """kind: read (the host wants a number), sync, to device, or to host (copies that the host waits for). place: the
    function of this program or of DeepSpeed, as `training/metrics.py:read`."""

    phase: str
    kind: str
    place: str


class Watch(PhasedMode):
    """Notes every wait while operators run in this mode. waits: how often each; copies: bytes that were moved without
    waiting."""

    def __init__(self, device: DeviceTensors) -> None:
        super().__init__()
        self.waits: Counter[Wait] = Counter()
        self.copies: Counter[Wait] = Counter()
        self._device = device
        STATE.on_wait = lambda what: self._note("sync")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READS and any(_is_there(each) for each in tree_leaves(args)):
            self._note("read")
        result = func(*args, **kwargs)
        if func is _aten._to_copy.default:
            self._see_copy(args[0], result, bool(kwargs.get("non_blocking")))
        elif func is _aten.copy_.default:
            self._see_copy(args[1], args[0], bool(args[2] if len(args) > 2 else kwargs.get("non_blocking")))
        return result

    def _see_copy(self, source: Any, target: Tensor, without_waiting: bool) -> None:
        if (
            not isinstance(source, Tensor)
            or source.device.type == target.device.type
            or "meta" in _types(source, target)
        ):
            return
        host, kind = (source, "to device") if _is_there(target) else (target, "to host")
        if without_waiting and self._device.is_pinned(host):
            self.copies[Wait(self.current, kind, _place())] += target.numel() * target.element_size()
        else:
            self._note(kind)

    def _note(self, kind: str) -> None:
        self.waits[Wait(self.current, kind, _place())] += 1


def _types(*tensors: Tensor) -> set[str]:
    return {each.device.type for each in tensors}


def _is_there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _place() -> str:
    """The innermost function of this program or of DeepSpeed."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        for root, prefix in ((_OURS, ""), (_DEEPSPEED, "deepspeed/")):
            if root in file:
                return f"{prefix}{file.rpartition(root)[2]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
