"""One step of each published solver, from one noise level to the next.

`x` is the noised latent, `x0` the predicted clean one, any shape, fp32. `a`, `a_next`, `a_previous` are
sqrt_alpha_bar of this level, the next and the one before, as Python floats (0 <= a < a_next <= 1): coefficients are
computed in float64.
"""

from __future__ import annotations

import math

from torch import Tensor


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
