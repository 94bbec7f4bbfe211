"""Samplers: from noise to a clean latent. One function per published step, one class per sampler that YAML
can name.

Letters: b batch, f y x latent frames, height and width, c latent channels, l text tokens, e text width.
In the step functions `a`, `a_next`, `a_previous` are sqrt_alpha_bar of this level, the next and the one
before, as Python floats (0 <= a < a_next <= 1); coefficients are computed in float64, latents stay fp32.

The levels come from NoiseSchedule.sampling.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cogvideox.diffusion.guidance import DynamicGuidance, Guidance, guide
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.errors import ConfigError


class Denoise(Protocol):
    """What a sampler asks of a model."""

    def __call__(self, noised_latent: Tensor, timestep: Tensor, context: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
        """noised_latent fp32 [b, f, c, y, x], timestep int64 [b], context [b, l, e], sqrt_alpha_bar fp32 [b]
        (the coefficient that turns v into a clean latent) -> predicted_latent fp32 [b, f, c, y, x]."""


class Levels(NamedTuple):
    """sqrt_alpha_bar before, at and after a step."""

    previous: float
    now: float
    next: float


StepNoise = Callable[[int], Tensor]  # step -> standard normal noise [b, f, c, y, x], on the latent's device


def ddim_step(x: Tensor, x0: Tensor, a: float, a_next: float) -> Tensor:
    """x <- k x + (a_next - a k) x0, k = sqrt((1 - a_next^2) / (1 - a^2)).

    Source: Song et al. 2021, "Denoising Diffusion Implicit Models", formula 12 with sigma = 0.
    """
    k = math.sqrt(_variance(a_next) / _variance(a))
    return k * x + (a_next - a * k) * x0


def dpmpp_2m_step(
    x: Tensor, x0: Tensor, x0_previous: Tensor | None, a_previous: float, a: float, a_next: float
) -> Tensor:
    """Second-order multistep ODE solver; first order on the first step, when there is no previous prediction.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2 (2M).
    """
    h = log_snr(a_next) - log_snr(a)
    x0 = _extrapolate(x0, x0_previous, a_previous, a, h)
    return math.sqrt(_variance(a_next) / _variance(a)) * x - math.expm1(-h) * a_next * x0


def dpmpp_2m_sde_step(
    x: Tensor,
    x0: Tensor,
    x0_previous: Tensor | None,
    noise: Tensor,
    a_previous: float,
    a: float,
    a_next: float,
) -> Tensor:
    """Second-order multistep SDE solver; first order on the first step, when there is no previous prediction.

    Source: Lu et al. 2022, "DPM-Solver++", section 5 (SDE-DPM-Solver++ 2M).
    """
    h = log_snr(a_next) - log_snr(a)
    x0 = _extrapolate(x0, x0_previous, a_previous, a, h)
    keep = math.sqrt(_variance(a_next) / _variance(a)) * math.exp(-h)
    fresh = math.sqrt(_variance(a_next)) * math.sqrt(-math.expm1(-2.0 * h))
    return keep * x - math.expm1(-2.0 * h) * a_next * x0 + fresh * noise


def log_snr(a: float) -> float:
    """lambda = log(a / sqrt(1 - a^2)): minus infinity for pure noise, infinity for a clean latent."""
    if a <= 0.0:
        return -math.inf
    return math.inf if a >= 1.0 else math.log(a) - 0.5 * math.log(_variance(a))


def _variance(a: float) -> float:
    return (1.0 - a) * (1.0 + a)


def _extrapolate(x0: Tensor, x0_previous: Tensor | None, a_previous: float, a: float, h: float) -> Tensor:
    """Linear extrapolation in log-SNR: (1 + w) x0 - w x0_previous, w = h / (2 h_previous). After a start from
    pure noise w = 0."""
    if x0_previous is None:
        return x0
    w = h / (2.0 * (log_snr(a) - log_snr(a_previous)))
    return (1.0 + w) * x0 - w * x0_previous


class Sampler(ABC):
    """The loop that all samplers share: one guided prediction, then one step; the last step returns the
    prediction itself.

    num_steps: network evaluations (each one with guidance computes two branches in one batch).
    guidance: an object with scale_at (see guidance.Guidance); None samples from the conditional branch only.
    Raises: ConfigError for num_steps < 1 or a guidance that is not one.
    """

    needs_noise = False

    def __init__(self, num_steps: int = 50, guidance: object = None) -> None:
        if num_steps < 1:
            raise ConfigError(f"sampler: num_steps is {num_steps}, must be at least 1")
        if guidance is not None and not hasattr(guidance, "scale_at"):
            raise ConfigError(
                f"sampler: guidance is a {type(guidance).__name__}, must be ConstantGuidance, DynamicGuidance or null"
            )
        self.num_steps = num_steps
        self.guidance: Guidance | None = guidance  # type: ignore[assignment]

    def with_steps(self, num_steps: int) -> Sampler:
        """The same sampler with another number of steps; a dynamic guidance is told as well. Raises:
        ConfigError."""
        guidance = self.guidance
        if isinstance(guidance, DynamicGuidance):
            guidance = DynamicGuidance(guidance.scale, guidance.exp, num_steps, guidance.by)
        return type(self)(num_steps, guidance)

    @abstractmethod
    def advance(self, x: Tensor, x0: Tensor, x0_previous: Tensor | None, at: Levels, noise: Tensor | None) -> Tensor:
        """From one level to the next, which is not the last."""

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        schedule: NoiseSchedule,
        context: Tensor,
        null_context: Tensor,
        step_noise: StepNoise | None = None,
        on_step: Callable[[int], object] | None = None,
    ) -> Tensor:
        """noise fp32 [b, f, c, y, x] and contexts [b, l, e] -> clean latent fp32 [b, f, c, y, x], scaled as
        the network sees it.

        step_noise: called once per step except the last, by samplers that need fresh noise. on_step: called
        after each step, for progress. Raises: ConfigError when num_steps is above the schedule's number of
        timesteps.
        """
        assert step_noise is not None or not self.needs_noise, f"{type(self).__name__} needs step_noise"
        levels = schedule.sampling(self.num_steps)
        a = levels.sqrt_alpha_bar.tolist()
        x, x0_previous = noise.float(), None
        for step, timestep in enumerate(levels.timesteps.tolist()):
            coefficient = levels.denoiser_sqrt_alpha_bar[step].to(x.device)
            x0 = self._predict(denoise, x, timestep, step, coefficient, context, null_context)
            if step + 1 == self.num_steps:
                x = x0
            else:
                fresh = step_noise(step) if step_noise is not None and self.needs_noise else None
                at = Levels(a[step - 1] if step else 0.0, a[step], a[step + 1])
                x = self.advance(x, x0, x0_previous, at, fresh)
            x0_previous = x0
            if on_step is not None:
                on_step(step)
        return x

    def _predict(
        self,
        denoise: Denoise,
        x: Tensor,
        timestep: int,
        step: int,
        coefficient: Tensor,
        context: Tensor,
        null_context: Tensor,
    ) -> Tensor:
        scale = 1.0 if self.guidance is None else self.guidance.scale_at(timestep, step)
        if scale == 1.0:
            times = torch.full((len(x),), timestep, dtype=torch.int64, device=x.device)
            return denoise(x, times, context, coefficient.expand(len(x)))
        times = torch.full((2 * len(x),), timestep, dtype=torch.int64, device=x.device)
        both = denoise(torch.cat([x, x]), times, torch.cat([null_context, context]), coefficient.expand(2 * len(x)))
        unconditional, conditional = both.chunk(2)
        return guide(conditional, unconditional, scale)


class DDIMSampler(Sampler):
    """Deterministic, first order."""

    def advance(self, x: Tensor, x0: Tensor, x0_previous: Tensor | None, at: Levels, noise: Tensor | None) -> Tensor:
        return ddim_step(x, x0, at.now, at.next)


class DPMpp2MSampler(Sampler):
    """Deterministic, second order."""

    def advance(self, x: Tensor, x0: Tensor, x0_previous: Tensor | None, at: Levels, noise: Tensor | None) -> Tensor:
        return dpmpp_2m_step(x, x0, x0_previous, at.previous, at.now, at.next)


class DPMpp2MSDESampler(Sampler):
    """Stochastic, second order: the sampler the released models are meant for.

    Noise is drawn once per step. The first public implementation draws twice on steps 1..n-2 and discards the
    first draw: same distribution, other videos for the same seed.
    """

    needs_noise = True

    def advance(self, x: Tensor, x0: Tensor, x0_previous: Tensor | None, at: Levels, noise: Tensor | None) -> Tensor:
        assert noise is not None
        return dpmpp_2m_sde_step(x, x0, x0_previous, noise, at.previous, at.now, at.next)
