"""What both trainings share: learning-rate curve, averaged weights, Muon for matrices beside AdamW for the rest."""

from __future__ import annotations

import math

import torch
from torch import nn


def learning_rate(progress: float, warmup: float = 0.02, last: float = 0.02) -> float:
    """Warm-up to 1, then cosine to `last`; progress runs from 0 to 1."""
    if progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1 - warmup)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


class Average:
    """Exponential moving average of a module's trained parameters; faster at the start."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                self.values[name].lerp_(parameter, 1 - decay)


class MuonAndAdam:
    """Muon on weight matrices (kernels of convolutions flattened to matrices), AdamW on everything else.

    Muon needs about half of AdamW's steps here. Source: Jordan et al. 2024, "Muon", in torch since 2.9.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], muon_lr: float, adam_lr: float):
        # The flat twins share storage with the parameters; only their gradients are handed over.
        self.matrices = [(p, nn.Parameter(p.data.view(p.shape[0], -1))) for p in matrices]
        self.peaks = (muon_lr, adam_lr)
        self.muon = torch.optim.Muon([flat for _, flat in self.matrices], lr=muon_lr, weight_decay=0.0)
        self.adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """One update at `rate` times the peak learning rates; clears the gradients."""
        for optimizer, peak in zip((self.muon, self.adam), self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        for parameter, flat in self.matrices:
            assert parameter.grad is not None
            flat.grad = parameter.grad.reshape(flat.shape)
            parameter.grad = None
        self.muon.step()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
