"""Steps of the solvers on Gaussian data, where the best denoiser and the exact flow have closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from cogvideox.diffusion.solver_steps import ddim_step, dpmpp_2m_sde_step, dpmpp_2m_step, log_snr
from torch import Tensor

MEAN, STD = 0.7, 0.5  # of the data
Step = Callable[[Tensor, Tensor, Tensor | None, float, float, float], Tensor]


def spread(a: float) -> float:
    """Standard deviation of the noised latent at this level."""
    return math.sqrt(a * a * STD * STD + 1 - a * a)


def denoise(x: Tensor, a: float) -> Tensor:
    """The posterior mean of the clean latent."""
    return MEAN + a * STD**2 / spread(a) ** 2 * (x - a * MEAN)


def flow(x: Tensor, a: float, a_end: float) -> Tensor:
    """Where the probability-flow ODE takes x: the same quantile of the Gaussian at the other level."""
    return a_end * MEAN + spread(a_end) / spread(a) * (x - a * MEAN)


def walk(step: Step, x: Tensor, num_steps: int, start: float = -3.0, end: float = 3.0) -> tuple[Tensor, float, float]:
    """Evenly in log-SNR: the result, and sqrt_alpha_bar of the first and the last level."""
    levels = [1 / math.sqrt(1 + math.exp(-2 * (start + (end - start) * i / num_steps))) for i in range(num_steps + 1)]
    previous, a_previous = None, 0.0
    for a, a_next in itertools.pairwise(levels):
        x0 = denoise(x, a)
        x = step(x, x0, previous, a_previous, a, a_next)
        previous, a_previous = x0, a
    return x, levels[0], levels[-1]


def ddim(x: Tensor, x0: Tensor, previous: Tensor | None, a_previous: float, a: float, a_next: float) -> Tensor:
    return ddim_step(x, x0, a, a_next)


@pytest.mark.parametrize(("step", "order"), [(ddim, 1), (dpmpp_2m_step, 2)])
def test_order_of_convergence(step: Step, order: int) -> None:
    """Twice the steps, 2^order times less error."""
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    errors = []
    for num_steps in (40, 80, 160):
        end, a_start, a_end = walk(step, x, num_steps)
        errors.append(float((end - flow(x, a_start, a_end)).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert errors[-1] < 0.02 / 4 ** (order - 1)


def test_the_sde_keeps_the_distribution() -> None:
    """2^17 samples: the standard deviation is known to 0.2 %, the mean to 0.3 % of it."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(2**17, generator=generator, dtype=torch.float64)

    def step(x: Tensor, x0: Tensor, previous: Tensor | None, a_previous: float, a: float, a_next: float) -> Tensor:
        return dpmpp_2m_sde_step(x, x0, previous, draw(), a_previous, a, a_next)

    start = 1 / math.sqrt(1 + math.exp(6))
    end, _, a_end = walk(step, start * MEAN + spread(start) * draw(), 100)
    assert float(end.std()) == pytest.approx(spread(a_end), rel=0.01)
    assert float(end.mean()) == pytest.approx(a_end * MEAN, abs=0.005)


@pytest.mark.parametrize(("a", "a_next"), [(0.0, 0.1), (0.3, 0.4), (0.9, 0.99)])
def test_one_step_from_the_true_clean_latent_stays_on_the_schedule(a: float, a_next: float) -> None:
    """x = a x0 + s eps goes to a_next x0 + s_next eps: with the same eps, or in the SDE with one of unit variance."""
    x0, eps, noise = (torch.full((1,), value, dtype=torch.float64) for value in (1.7, 1.0, 1.0))
    s, s_next = math.sqrt(1 - a * a), math.sqrt(1 - a_next * a_next)
    for step in (ddim, dpmpp_2m_step):
        torch.testing.assert_close(step(a * x0 + s * eps, x0, None, 0.0, a, a_next), a_next * x0 + s_next * eps)
    kept = dpmpp_2m_sde_step(a * x0 + s * eps, x0, None, 0 * noise, 0.0, a, a_next) - a_next * x0
    fresh = dpmpp_2m_sde_step(a * x0, x0, None, noise, 0.0, a, a_next) - a_next * x0
    torch.testing.assert_close(kept**2 + fresh**2, torch.full_like(kept, s_next**2))


def test_second_order_steps_start_as_first_order_ones() -> None:
    """After a start from pure noise (log-SNR minus infinity) there is nothing to extrapolate from."""
    x, x0, previous, noise = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))
    ode, sde = dpmpp_2m_step, dpmpp_2m_sde_step
    assert torch.equal(ode(x, x0, previous, 0.0, 0.3, 0.4), ode(x, x0, None, 0.0, 0.3, 0.4))
    assert torch.equal(sde(x, x0, previous, noise, 0.0, 0.3, 0.4), sde(x, x0, None, noise, 0.0, 0.3, 0.4))


def test_log_snr() -> None:
    assert log_snr(0.0) == -math.inf and log_snr(1.0) == math.inf
    assert log_snr(0.6) == pytest.approx(math.log(0.6 / 0.8))
