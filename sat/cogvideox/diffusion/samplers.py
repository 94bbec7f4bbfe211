"""Samplers: from noise to a clean latent, one class per sampler that YAML can name.

Letters: b batch, f y x latent frames, height and width, c latent channels, l text tokens, e text width.
The levels come from NoiseSchedule.sampling, the maths of one step from solver_steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from cogvideox.diffusion.guidance import DynamicGuidance, Guidance, guide
from cogvideox.diffusion.schedule import NoiseSchedule, Spacing
from cogvideox.diffusion.solver_steps import ddim_step, dpmpp_2m_sde_step, dpmpp_2m_step
from cogvideox.diffusion.timesteps import to_device
from cogvideox.errors import ConfigError


class Denoise(Protocol):
    """What a sampler asks of a model. What else the model is conditioned on, its caller binds beforehand."""

    def __call__(self, noised_latent: Tensor, timestep: Tensor, context: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
        """noised_latent fp32 [b, f, c, y, x], timestep int64 [b], context [b, l, e], sqrt_alpha_bar fp32 [b]
        (the coefficient that turns v into a clean latent) -> predicted_latent fp32 [b, f, c, y, x]."""


class Levels(NamedTuple):
    """sqrt_alpha_bar before, at and after a step."""

    previous: float
    now: float
    next: float


StepNoise = Callable[[int], Tensor]  # step -> standard normal noise [b, f, c, y, x], on the latent's device


class Sampler(ABC):
    """The loop that all samplers share: one guided prediction, then one step; the last step returns the
    prediction itself.

    num_steps: levels, each with one guided prediction.
    guidance: an object with scale_at (see guidance.Guidance); None samples from the conditional branch only. A
        DynamicGuidance by step counts the steps of this sampler, whatever number it was made with.
    spacing: how the levels are spread (see NoiseSchedule.sampling): trailing as the released models are sampled,
        linear_quadratic for few steps.
    linear_steps: of linear_quadratic, how many steps are linear; None for half of them.
    guidance_batch: joint runs both branches of guidance as one batch; split runs one after the other, with half the
        memory for activations. The same result, up to what the rounding of a kernel owes to its batch size.
    Raises: ConfigError for num_steps < 1, a guidance that is not one, an unknown choice, or linear_steps that do not
        fit.
    """

    needs_noise = False

    def __init__(
        self,
        num_steps: int = 50,
        guidance: object = None,
        spacing: Literal["trailing", "linear_quadratic"] = "trailing",
        linear_steps: int | None = None,
        guidance_batch: Literal["joint", "split"] = "joint",
    ) -> None:
        if num_steps < 1:
            raise ConfigError(f"sampler: num_steps is {num_steps}, must be at least 1")
        if guidance is not None and not hasattr(guidance, "scale_at"):
            raise ConfigError(
                f"sampler: guidance is a {type(guidance).__name__}, must be ConstantGuidance, DynamicGuidance or null"
            )
        if spacing not in ("trailing", "linear_quadratic"):
            raise ConfigError(f"sampler: spacing is {spacing!r}, must be trailing or linear_quadratic")
        if guidance_batch not in ("joint", "split"):
            raise ConfigError(f"sampler: guidance_batch is {guidance_batch!r}, must be joint or split")
        if linear_steps is not None and spacing != "linear_quadratic":
            raise ConfigError(
                f"sampler: linear_steps is {linear_steps}, but spacing is {spacing}: set spacing to "
                "linear_quadratic, or linear_steps to null"
            )
        if linear_steps is not None and not 0 <= linear_steps < num_steps:
            raise ConfigError(f"sampler: linear_steps is {linear_steps}, must be between 0 and {num_steps - 1}")
        if isinstance(guidance, DynamicGuidance) and guidance.by == "step":
            guidance = guidance.with_steps(num_steps)
        self.num_steps = num_steps
        self.guidance: Guidance | None = guidance  # type: ignore[assignment]
        self.spacing: Spacing = spacing
        self.linear_steps = linear_steps
        self.guidance_batch: Literal["joint", "split"] = guidance_batch

    def with_steps(self, num_steps: int) -> Sampler:
        """The same sampler with another number of steps, also for a dynamic guidance; linear_steps keep their
        share. Raises: ConfigError."""
        guidance = self.guidance
        if isinstance(guidance, DynamicGuidance):
            guidance = guidance.with_steps(num_steps)
        linear = self.linear_steps
        if linear is not None:
            linear = min(round(linear * num_steps / self.num_steps), num_steps - 1)
        return type(self)(num_steps, guidance, self.spacing, linear, self.guidance_batch)

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
        levels = schedule.sampling(self.num_steps, self.spacing, self.linear_steps)
        a = levels.sqrt_alpha_bar.tolist()
        coefficients = to_device(levels.denoiser_sqrt_alpha_bar, noise.device)  # all at once: no step waits for one
        x, x0_previous = noise.float(), None
        for step, timestep in enumerate(levels.timesteps.tolist()):
            x0 = self._predict(denoise, x, timestep, step, coefficients[step], context, null_context)
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
        def branch(batch: Tensor, context: Tensor) -> Tensor:
            times = torch.full((len(batch),), timestep, dtype=torch.int64, device=batch.device)
            return denoise(batch, times, context, coefficient.expand(len(batch)))

        scale = 1.0 if self.guidance is None else self.guidance.scale_at(timestep, step)
        if scale == 1.0:
            return branch(x, context)
        if self.guidance_batch == "split":
            unconditional = branch(x, null_context)
            return guide(branch(x, context), unconditional, scale)
        unconditional, conditional = branch(torch.cat([x, x]), torch.cat([null_context, context])).chunk(2)
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
