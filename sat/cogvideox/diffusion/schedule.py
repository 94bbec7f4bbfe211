"""The noise schedule: one table for training, and its sub-sampled twin for sampling.

Letters: b batch, n sampling steps. `timestep` is an integer 0..num_timesteps-1 (0 = almost clean);
`sqrt_alpha_bar` is the fp32 square root of cumulative alpha (1 = clean, 0 = pure noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cogvideox.diffusion import denoiser
from cogvideox.diffusion.timesteps import to_device
from cogvideox.errors import ConfigError

Spacing = Literal["trailing", "linear_quadratic"]


@dataclass(frozen=True)
class SamplingSchedule:
    """The levels a sampler walks through, from noise to clean. All tensors live on the CPU.

    timesteps: int64 [n], descending; what the network is given.
    sqrt_alpha_bar: fp32 [n + 1], ascending; step i goes from level i to level i + 1; the last is 1.0.
    denoiser_sqrt_alpha_bar: fp32 [n]; level i rounded to the nearest entry of the training table, which turns
    v into a clean latent.
    """

    timesteps: Tensor
    sqrt_alpha_bar: Tensor
    denoiser_sqrt_alpha_bar: Tensor


class NoiseSchedule:
    """Scaled-linear betas, SNR shift, zero terminal SNR.

    shift_scale: alpha_bar <- alpha_bar / (s + (1 - s) * alpha_bar): 3.0 for 2B, 1.0 for 5B and 1.5.
    zero_terminal_snr: shift and rescale sqrt(alpha_bar), so that the last timestep is pure noise.

    Deliberately no nn.Module: the tables must stay fp32, and training engines cast the buffers of a module.

    Source: Rombach et al. 2022 (betas); CogVideoX report, section 3.1, and Esser et al. 2024, section 5.3.2
    (shift); Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1
    (zero terminal SNR).
    Raises: ConfigError for values that give no decreasing schedule.
    """

    def __init__(
        self,
        num_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        shift_scale: float = 3.0,
        zero_terminal_snr: bool = True,
    ) -> None:
        if num_timesteps < 2:
            raise ConfigError(f"schedule: num_timesteps is {num_timesteps}, at least 2 are needed")
        if not 0.0 < beta_start <= beta_end < 1.0:
            raise ConfigError(f"schedule: need 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        if shift_scale <= 0.0:
            raise ConfigError(
                f"schedule: shift_scale is {shift_scale}, must be above 0 (3.0 for 2B, 1.0 for 5B and 1.5)"
            )
        self.num_timesteps = num_timesteps
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.shift_scale = shift_scale
        self.zero_terminal_snr = zero_terminal_snr
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
        alpha_bar = torch.cumprod(1.0 - betas, dim=0)
        # float64, shifted but not yet rescaled: sub-sampling starts from here.
        self._alpha_bar = alpha_bar / (shift_scale + (1.0 - shift_scale) * alpha_bar)
        self.sqrt_alpha_bar = self._levels(self._alpha_bar)
        self._on_device = {self.sqrt_alpha_bar.device: self.sqrt_alpha_bar}

    def _levels(self, alpha_bar: Tensor) -> Tensor:
        """float64 alpha_bar, descending -> fp32 sqrt_alpha_bar; the rescale itself is done in fp32, as the
        weights were trained."""
        levels = alpha_bar.float().sqrt()
        if not self.zero_terminal_snr:
            return levels
        first, last = levels[0].clone(), levels[-1].clone()
        return (levels - last) * (first / (first - last)) if len(levels) > 1 else torch.zeros(1)

    def move(self, device: torch.device) -> None:
        """Have the training table on a device, besides those where it is already."""
        if device not in self._on_device:
            self._on_device[device] = to_device(self.sqrt_alpha_bar, device)

    def level(self, timestep: Tensor) -> Tensor:
        """sqrt_alpha_bar of each timestep: int64 [b] -> fp32 [b] on the same device, without a host sync."""
        self.move(timestep.device)
        return self._on_device[timestep.device][timestep]

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """latent [b, ...], noise [b, ...], timestep int64 [b] -> noised_latent fp32 [b, ...]."""
        return denoiser.add_noise(latent, noise, self.level(timestep))

    def nearest(self, sqrt_alpha_bar: Tensor) -> Tensor:
        """Round levels [n] to the nearest entries of the training table, fp32 [n]."""
        distance = (sqrt_alpha_bar[:, None] - self.sqrt_alpha_bar[None, :]).abs()
        return self.sqrt_alpha_bar[distance.argmin(dim=1)]

    def sampling(
        self, num_steps: int, spacing: Spacing = "trailing", linear_steps: int | None = None
    ) -> SamplingSchedule:
        """The schedule of a sampler with `num_steps` steps.

        trailing: timesteps evenly spread, from the last one downwards. The zero-SNR rescale runs after
        sub-sampling, with the sub-sample's own first element: the levels are close to, but not a subset of, the
        training table.
        linear_quadratic: for few steps, many of them spent near pure noise, where the motion is decided. Each level is
        the training table's entry that is nearest to `linear_quadratic_progress`, which counts the share of signal,
        a / (a + sqrt(1 - a^2)): the time that runs from noise to data where noising is linear. linear_steps: how many
        steps are linear, None for half of them. A timestep that is taken already gives way to the next one.

        Raises: ConfigError unless 1 <= num_steps <= num_timesteps.
        """
        if not 1 <= num_steps <= self.num_timesteps:
            raise ConfigError(f"sampler: num_steps is {num_steps}, must be between 1 and {self.num_timesteps}")
        if spacing == "linear_quadratic":
            timesteps = self._linear_quadratic(num_steps, num_steps // 2 if linear_steps is None else linear_steps)
            levels = self.sqrt_alpha_bar[timesteps]
        else:
            timesteps = trailing_timesteps(num_steps, self.num_timesteps)
            levels = self._levels(self._alpha_bar[timesteps.flip(0)]).flip(0)
        return SamplingSchedule(timesteps, torch.cat([levels, torch.ones(1)]), self.nearest(levels))

    def _linear_quadratic(self, num_steps: int, linear_steps: int) -> Tensor:
        """int64 [n], strictly descending from the last timestep."""
        a = self.sqrt_alpha_bar.double()
        signal = a / (a + denoiser.noise_level(a))
        wanted = torch.tensor(linear_quadratic_progress(num_steps, linear_steps, self.num_timesteps)).double()
        timesteps = (signal[None, :] - wanted[:, None]).abs().argmin(dim=1).tolist()
        timesteps[0] = self.num_timesteps - 1
        for i in range(1, num_steps):
            timesteps[i] = min(timesteps[i], timesteps[i - 1] - 1)
        return torch.tensor([max(t, num_steps - 1 - i) for i, t in enumerate(timesteps)], dtype=torch.int64)


def trailing_timesteps(num_steps: int, num_timesteps: int) -> Tensor:
    """int64 [n], descending from num_timesteps - 1: linspace(last, 0, n, endpoint=False) truncated.

    In float64, not in exact integers: for 34 of the 1000 possible step counts a rounding error moves a timestep
    by one, and the released models' sampler has that rounding.
    """
    last = num_timesteps - 1
    return torch.tensor([int(last + i * (-last / num_steps)) for i in range(num_steps)], dtype=torch.int64)


def linear_quadratic_progress(num_steps: int, linear_steps: int, fine_steps: int) -> list[float]:
    """From 0 towards 1, n values: where each step starts.

    The first L = linear_steps steps are those of a linear schedule of T = fine_steps steps; the others are spaced
    quadratically, with the same slope where they begin, and the last one ends at 1. After i steps:
        i / T                                        for i <= L,
        i / T + (1 - n / T) ((i - L) / (n - L))^2    after that.

    Source: Movie Gen (arXiv 2410.13720), section 3.4.2.
    """
    assert 0 <= linear_steps < num_steps <= fine_steps, f"{linear_steps} linear steps of {num_steps}"
    tail = [max(0, i - linear_steps) / (num_steps - linear_steps) for i in range(num_steps)]
    return [i / fine_steps + (1.0 - num_steps / fine_steps) * u * u for i, u in enumerate(tail)]
