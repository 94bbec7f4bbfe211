"""fp32 copies of 16-bit weights, for a process that keeps all of its optimizer (ZeRO stage 0).

The optimizer works on the copies; the weights are the copies, rounded. DeepSpeed's own optimizer for this case reads
one number per tensor on the host, and sums micro batches in the weights' precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MasterWeights:
    """The copies of all trainable weights, and their gradients.

    groups: parameter groups of the weights (optimizers.parameter_groups). accumulate: in which precision the gradients
    of a step's micro batches are summed: fp32, or the weights' own. In fp32 each 16-bit gradient is added to the
    copy's as soon as it is there, and dropped.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], accumulate: torch.dtype) -> None:
        self._weights: list[nn.Parameter] = [weight for group in groups for weight in group["params"]]
        copies = {weight: weight.detach().float().requires_grad_() for weight in self._weights}
        self.groups = [{**group, "params": [copies[weight] for weight in group["params"]]} for group in groups]
        self.tensors: list[Tensor] = list(copies.values())
        if accumulate == torch.float32:
            for weight, copy in copies.items():
                weight.register_post_accumulate_grad_hook(_move_gradient_to(copy))

    @torch.no_grad()
    def read_weights(self) -> None:
        """Take the weights' values, where something else has changed them."""
        torch._foreach_copy_(self.tensors, list(self._weights))

    @torch.no_grad()
    def write_weights(self, *_: object) -> None:
        """After a step of the optimizer: round the copies into the weights, and drop the gradients."""
        torch._foreach_copy_(list(self._weights), self.tensors)
        for copy in self.tensors:
            copy.grad = None

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradients that DeepSpeed averages over processes; it asks its optimizer under this name. The second entry
        is for experts, which are none."""
        gradients = []
        for weight, copy in zip(self._weights, self.tensors, strict=True):
            if weight.grad is not None:
                copy.grad, weight.grad = weight.grad.float(), None
            if copy.grad is None:  # all processes must hand over the same tensors
                copy.grad = torch.zeros_like(copy)
            gradients.append(copy.grad)
        return gradients, {}


def _move_gradient_to(copy: Tensor) -> Callable[[Tensor], None]:
    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        if copy.grad is None:
            copy.grad = weight.grad.float()
        else:
            copy.grad.add_(weight.grad)
        weight.grad = None

    return move
