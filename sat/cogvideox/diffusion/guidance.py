"""Classifier-free guidance: how strongly a step is pushed from the unconditional towards the conditional
prediction.

Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance"; the combination runs on predictions of the
clean latent.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

from torch import Tensor

from cogvideox.errors import ConfigError


class Guidance(Protocol):
    """The strength of each step of a sampler."""

    def scale_at(self, timestep: int, step: int) -> float:
        """timestep: what the network is given, 999 first; step: 0 first. 1.0 means no guidance."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """predicted_latent = unconditional + scale * (conditional - unconditional), all [b, f, c, y, x]."""
    return unconditional + scale * (conditional - unconditional)


class ConstantGuidance:
    """The same scale at every step. Raises: ConfigError for a negative scale."""

    def __init__(self, scale: float = 6.0) -> None:
        if scale < 0.0:
            raise ConfigError(f"guidance: scale is {scale}, must not be negative (1.0 turns guidance off)")
        self.scale = scale

    def scale_at(self, timestep: int, step: int) -> float:
        return self.scale


class DynamicGuidance:
    """A scale between 1 and 1 + `scale`: 1 + scale * (1 - cos(pi * progress ** exp)) / 2.

    by: what progress is. "timestep", the published behaviour: (num_steps - timestep) / num_steps with timesteps of
        0..999, so the scale jumps between its ends from step to step; diffusers does the same. "step": step /
        num_steps, so the scale rises smoothly.
    num_steps: as the sampler's, for the published scales. By step it is the sampler's, which sets it (see Sampler).
    Raises: ConfigError for a negative scale, num_steps < 1, or, by timestep, an exponent that is no whole number
        (progress is negative there).
    """

    def __init__(
        self,
        scale: float = 6.0,
        exp: float = 5.0,
        num_steps: int = 50,
        by: Literal["timestep", "step"] = "timestep",
    ) -> None:
        if scale < 0.0:
            raise ConfigError(f"guidance: scale is {scale}, must not be negative")
        if num_steps < 1:
            raise ConfigError(f"guidance: num_steps is {num_steps}, must be at least 1")
        if by not in ("timestep", "step"):
            raise ConfigError(f"guidance: by is {by!r}, must be timestep or step")
        if by == "timestep" and not float(exp).is_integer():
            raise ConfigError(
                f"guidance: exp is {exp}, must be a whole number with by: timestep, such as {round(exp)}.0"
            )
        self.scale = scale
        self.exp = exp
        self.num_steps = num_steps
        self.by: Literal["timestep", "step"] = by

    def scale_at(self, timestep: int, step: int) -> float:
        progress = (self.num_steps - timestep if self.by == "timestep" else step) / self.num_steps
        return 1.0 + self.scale * (1.0 - math.cos(math.pi * progress**self.exp)) / 2.0

    def with_steps(self, num_steps: int) -> DynamicGuidance:
        """The same guidance for another number of steps."""
        return DynamicGuidance(self.scale, self.exp, num_steps, self.by)
