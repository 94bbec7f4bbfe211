"""Clipping, and refusing gradients that are not finite, inside torch's fused optimizer: nothing is read on the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Guard:
    """Before each step of a fused optimizer, tell its kernel what to divide the gradients by, and whether to skip.

    norm_of: gives the norm of all gradients, a scalar on their device; not finite where a gradient isn't. clip: the
    largest norm that the optimizer may see, 0 for any. A skipped step changes neither weights nor moments.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, norm_of: Callable[[], Tensor], clip: float) -> None:
        self._norm_of, self._clip = norm_of, clip
        optimizer.register_step_pre_hook(self._before)

    def _before(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        norm = self._norm_of().float()
        scale = ((norm + 1e-6) / self._clip).clamp(min=1.0) if self._clip > 0 else None
        # The attributes through which torch's GradScaler speaks to it.
        optimizer.grad_scale, optimizer.found_inf = scale, (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
