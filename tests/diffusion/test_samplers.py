"""Properties of the samplers that hold for every network."""

from __future__ import annotations

import math

import pytest
import torch
from cogvideox.diffusion.guidance import ConstantGuidance, DynamicGuidance
from cogvideox.diffusion.samplers import (
    DDIMSampler,
    DPMpp2MSampler,
    DPMpp2MSDESampler,
    Sampler,
    dpmpp_2m_sde_step,
    dpmpp_2m_step,
    log_snr,
)
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.diffusion.timesteps import gaussian
from cogvideox.errors import ConfigError
from torch import Tensor

SHAPE = (2, 3, 4, 5, 6)
SAMPLERS = [DDIMSampler, DPMpp2MSampler, DPMpp2MSDESampler]
CONTEXT, NULL = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)


def latent(key: str) -> Tensor:
    return gaussian(SHAPE, key)


def step_noise(step: int) -> Tensor:
    return gaussian(SHAPE, "step", step)


def run(sampler: Sampler, denoise: object, **more: object) -> Tensor:
    return sampler.sample(denoise, latent("start"), NoiseSchedule(), CONTEXT, NULL, step_noise, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_perfect_denoiser_gives_the_clean_latent(kind: type[Sampler], steps: int) -> None:
    clean = latent("clean")
    assert torch.equal(run(kind(steps), lambda x, t, c, a: clean), clean)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_levels_stay_on_the_schedule(kind: type[Sampler]) -> None:
    """With a perfect denoiser the latent at each level is a * clean + sqrt(1 - a^2) * noise of unit variance."""
    clean = latent("clean")
    residues = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        residues.append(((x - a[0] * clean) / (1 - a[0] ** 2).sqrt()).std())
        return clean

    run(kind(20), denoise)
    # The denoiser's level is rounded to the table, so the residue is only nearly of variance 1; 720 values.
    assert torch.stack(residues).sub(1).abs().max() < 0.2


@pytest.mark.parametrize("kind", SAMPLERS)
def test_runs_are_repeatable(kind: type[Sampler]) -> None:
    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        return torch.tanh(x) * a[:, None, None, None, None]

    torch.manual_seed(0)
    first = run(kind(7), denoise)
    torch.manual_seed(1)
    assert torch.equal(first, run(kind(7), denoise))


@pytest.mark.parametrize("kind", [DDIMSampler, DPMpp2MSampler])
def test_deterministic_samplers_never_ask_for_noise(kind: type[Sampler]) -> None:
    result = kind(5).sample(lambda x, t, c, a: x / 2, latent("start"), NoiseSchedule(), CONTEXT, NULL)
    assert result.shape == SHAPE


def test_sde_draws_once_per_step_but_not_at_the_last() -> None:
    drawn = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return step_noise(step)

    sampler = DPMpp2MSDESampler(6)
    sampler.sample(lambda x, t, c, a: x / 2, latent("start"), NoiseSchedule(), CONTEXT, NULL, noise)
    assert drawn == [0, 1, 2, 3, 4]
    with pytest.raises(AssertionError, match="needs step_noise"):
        sampler.sample(lambda x, t, c, a: x, latent("start"), NoiseSchedule(), CONTEXT, NULL)


def test_the_network_gets_integer_timesteps_and_rounded_levels() -> None:
    schedule = NoiseSchedule()
    seen = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        assert t.dtype == torch.int64 and t.shape == a.shape == (len(x),)
        seen.append((int(t[0]), a[0]))
        return x

    run(DDIMSampler(10), denoise)
    assert [timestep for timestep, _ in seen] == schedule.sampling(10).timesteps.tolist()
    assert all(level in schedule.sqrt_alpha_bar for _, level in seen)


def test_guidance_runs_both_branches_in_one_batch() -> None:
    calls = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        calls.append(len(x))
        return context[:, :, :, None, None] * torch.ones(SHAPE[1:])  # 1 with a caption, 0 without

    guided = run(DDIMSampler(3, ConstantGuidance(6.0)), denoise)
    assert calls == [4, 4, 4] and torch.equal(guided, torch.full(SHAPE, 6.0))
    calls.clear()
    unguided = run(DDIMSampler(3), denoise)
    assert calls == [2, 2, 2] and torch.equal(unguided, torch.ones(SHAPE))


def test_progress_is_reported_after_each_step() -> None:
    seen: list[int] = []
    run(DDIMSampler(4), lambda x, t, c, a: x, on_step=seen.append)
    assert seen == [0, 1, 2, 3]


def test_second_order_steps_start_as_first_order_ones() -> None:
    """After a start from pure noise (log-SNR minus infinity) there is nothing to extrapolate from."""
    x, x0, previous, noise = latent("x"), latent("x0"), latent("previous"), latent("noise")
    ode, sde = dpmpp_2m_step, dpmpp_2m_sde_step
    assert torch.equal(ode(x, x0, previous, 0.0, 0.3, 0.4), ode(x, x0, None, 0.0, 0.3, 0.4))
    assert torch.equal(sde(x, x0, previous, noise, 0.0, 0.3, 0.4), sde(x, x0, None, noise, 0.0, 0.3, 0.4))


def test_log_snr() -> None:
    assert log_snr(0.0) == -math.inf and log_snr(1.0) == math.inf
    assert log_snr(0.6) == pytest.approx(math.log(0.6 / 0.8))


def test_with_steps_also_tells_a_dynamic_guidance() -> None:
    sampler = DPMpp2MSDESampler(50, DynamicGuidance(5.0, 3.0, 50, by="step")).with_steps(8)
    assert isinstance(sampler, DPMpp2MSDESampler) and isinstance(sampler.guidance, DynamicGuidance)
    assert (sampler.num_steps, sampler.guidance.num_steps, sampler.guidance.by) == (8, 8, "step")


def test_impossible_samplers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_steps is 0, must be at least 1"):
        DDIMSampler(0)
    with pytest.raises(ConfigError, match="guidance is a int, must be ConstantGuidance"):
        DDIMSampler(5, guidance=6)
    with pytest.raises(ConfigError, match="num_steps is 1001, must be between 1 and 1000"):
        run(DDIMSampler(1001), lambda x, t, c, a: x)
