"""How many kernels are launched, and how many bytes they touch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from simulated_cuda.phases import PhasedMode

# Bookkeeping: memory without a kernel, or another name for the same memory.
_FREE = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::lift", "aten::_local_scalar", "aten::detach",
         "aten::alias", "aten::set_", "prim::", "c10d::")  # fmt: skip


class Launches(PhasedMode):
    """Counts operators on the device while they run in this mode, by phase.

    launches: how many. touched: bytes of their inputs and outputs; what is changed in place is read and written. An
    operator of several kernels counts as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.touched: Counter[str] = Counter()
        self._is_free: dict[Any, bool] = {}

    def forget(self) -> None:
        """Start again from zero."""
        self.launches.clear()
        self.touched.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        free = self._is_free.get(func)
        if free is None:
            free = self._is_free[func] = func.is_view or func._schema.name.startswith(_FREE)
        if not free:
            sizes = [
                each.numel() * each.element_size() for each in tree_leaves((args, kwargs, result)) if _is_there(each)
            ]
            if sizes:
                self.launches[self.current] += 1
                self.touched[self.current] += sum(sizes)
        return result


def _is_there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"
