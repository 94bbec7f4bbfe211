"""Clipping, and refusing gradients that are not finite, inside torch's fused optimizers: the host reads nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Guard:
    """Before each step of a fused optimizer, give its kernel what to divide the gradients by, and whether to skip.

    norm_of: gives the norm of all gradients, a scalar on their device; not finite where a gradient isn't. clip: the
    largest norm that the optimizer may see, 0 for any. A skipped step changes neither weights nor moments. Optimizers
    without that interface (DeepSpeed's) get divided gradients, and skip nothing.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, norm_of: Callable[[], Tensor], clip: float) -> None:
        self._norm_of, self._clip = norm_of, clip
        optimizer.register_step_pre_hook(self._before)

    def _before(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        norm = self._norm_of().float()
        scale = ((norm + 1e-6) / self._clip).clamp(min=1.0) if self._clip > 0 else None
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            self._divide(optimizer, scale)
            return
        # The attributes through which torch's GradScaler speaks to it.
        optimizer.grad_scale, optimizer.found_inf = scale, (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _divide(self, optimizer: torch.optim.Optimizer, scale: Tensor | None) -> None:
        weights = [each for group in optimizer.param_groups for each in group["params"]]
        gradients = [each.grad for each in weights if each.grad is not None]
        if scale is not None and gradients:
            torch._foreach_div_(gradients, scale)
