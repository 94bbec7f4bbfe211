"""Tensors of the simulated device: torch's FakeTensor, with what it leaves out for whole programs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools import fake_collectives  # noqa: F401  # collectives for tensors without contents

from simulated_cuda import truth

_aten = torch.ops.aten
_PIN = (_aten._pin_memory.default, _aten.pin_memory.default)


class DeviceTensors(FakeTensorMode):
    """In this mode tensors are made without contents. A pinned tensor is one on the CPU that this object remembers.

    What the host reads of them lets a program find all of its numbers finite and go on (see `truth.py`).
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._pinned: set[int] = set()

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether its memory was asked for as pinned."""
        return tensor.untyped_storage()._cdata in self._pinned

    @property
    def avoid_device_init(self) -> bool:
        """As on a machine without a device: torch.tensor(..., device="cuda") makes a CPU tensor, which this mode
        moves."""
        return True

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PIN:
            return self._pin(_aten.clone.default(args[0]))
        if func is _aten.is_pinned.default:
            return self.is_pinned(args[0])
        if func is _aten._local_scalar_dense.default and args[0].constant is None:
            return truth.read(args[0])
        pin = kwargs.get("pin_memory")
        if pin:
            kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        result: Any = super().dispatch(func, types, args, kwargs)
        truth.follow(func, args, result)
        return self._pin(result) if pin else result

    def _pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._pinned.discard, storage._cdata)
        return tensor


def install() -> None:
    """Make modules, `tensor.data = ...` and attention work on tensors without contents."""
    nn.Module._apply = _apply  # type: ignore[assignment, method-assign]
    own = torch.Tensor.data
    FakeTensor.data = property(own.__get__, _set_data)  # type: ignore[assignment, attr-defined]
    F.scaled_dot_product_attention = _attention
    Tensor.tolist = _tolist  # type: ignore[assignment, method-assign]


def _set_data(tensor: FakeTensor, value: FakeTensor) -> None:
    """Torch's own setter exchanges the storage, but forgets the device."""
    torch.Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
    tensor.fake_device = value.fake_device


def _tolist(tensor: Tensor) -> Any:
    if not isinstance(tensor, FakeTensor):
        return _own_tolist(tensor)
    return [_tolist(each) for each in tensor.unbind()] if tensor.dim() else tensor.item()


_own_tolist = Tensor.tolist


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Module.to and the like, as torch does it between CPU and CUDA: parameters keep their identity, but for those
    from or to the meta device. Torch's own swaps tensors without contents, which it refuses while somebody watches
    them with a weak reference."""
    for child in module.children() if recurse else ():
        _apply(child, fn)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            new = fn(parameter)
        if new is not parameter and "meta" in (parameter.device.type, new.device.type):
            module._parameters[name] = nn.Parameter(new, parameter.requires_grad)
        elif new is not parameter:
            parameter.data = new
            if parameter.grad is not None:
                parameter.grad.data = fn(parameter.grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


_own_attention = F.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that CUDA takes: flash where it can, else the memory-efficient one. Without CUDA torch would choose
    the plain path, which has the whole matrix of scores."""
    if query.device.type != "cuda":
        return _own_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]
