"""Schedules and sampler steps against diffusers' CogVideoX schedulers, given the same levels and the same noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cogvideox.diffusion.samplers import DDIMSampler, DPMpp2MSampler, DPMpp2MSDESampler, Sampler
from cogvideox.diffusion.schedule import NoiseSchedule, SamplingSchedule, Spacing, linear_quadratic_progress
from cogvideox.diffusion.timesteps import gaussian
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DPMSolverMultistepScheduler
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from diffusers.schedulers import scheduling_dpm_cogvideox
from torch import Tensor

SHAPE = (1, 3, 4, 8, 8)
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}
STEPS = [5, 50]  # 1000 is a multiple: only then diffusers' notion of the previous timestep is the schedule's
# fp32: some 2^-24 per step and level, amplified at the end by 1 / sqrt(1 - a^2), about 20, where v is formed from x0.
TOLERANCE = 1e-5


def predicted_latent(x: Tensor, timestep: int) -> Tensor:
    """Stands for a network: nonlinear, different at each timestep."""
    return torch.tanh(0.8 * x + timestep / 1000) - 0.1 * x


def on_our_levels(scheduler: CogVideoXDDIMScheduler, levels: SamplingSchedule, steps: int) -> list[int]:
    """Give diffusers our levels at our timesteps; returns these."""
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps == levels.timesteps.tolist()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.alphas_cumprod[levels.timesteps] = levels.sqrt_alpha_bar[:-1].double() ** 2
    return timesteps


def v_of(x: Tensor, x0: Tensor, scheduler: CogVideoXDDIMScheduler, timestep: int) -> Tensor:
    """The v that diffusers turns back into x0."""
    alpha_bar = scheduler.alphas_cumprod[timestep]
    return ((alpha_bar**0.5 * x.double() - x0.double()) / (1 - alpha_bar) ** 0.5).float()


def ours(sampler: Sampler, noise: Callable[[int], Tensor], schedule: NoiseSchedule | None = None) -> list[Tensor]:
    """Latents before each step, and the result."""
    trace: list[Tensor] = []

    def denoise(x: Tensor, timestep: Tensor, context: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
        trace.append(x)
        return predicted_latent(x, int(timestep[0]))

    context = torch.zeros(1, 1, 1)
    start = gaussian(SHAPE, "start")
    trace.append(sampler.sample(denoise, start, schedule or NoiseSchedule(), context, context, noise))
    return trace


def step_noise(step: int) -> Tensor:
    return gaussian(SHAPE, "noise", step)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_table(shift: float) -> None:
    theirs = CogVideoXDDIMScheduler(**CONFIG, snr_shift_scale=shift).alphas_cumprod.sqrt().float()
    torch.testing.assert_close(NoiseSchedule(shift_scale=shift).sqrt_alpha_bar, theirs, rtol=0, atol=2e-7)


def test_sub_sampled_levels_differ_from_diffusers_by_at_most_a_thousandth() -> None:
    theirs = CogVideoXDDIMScheduler(**CONFIG).alphas_cumprod.sqrt().float()
    levels = NoiseSchedule().sampling(50)
    difference = (theirs[levels.timesteps] - levels.sqrt_alpha_bar[:-1]).abs().max()
    assert 1e-5 < difference < 2e-3


@pytest.mark.parametrize("steps", STEPS)
def test_ddim(steps: int) -> None:
    scheduler = CogVideoXDDIMScheduler(**CONFIG)
    timesteps = on_our_levels(scheduler, NoiseSchedule().sampling(steps), steps)
    trace = ours(DDIMSampler(steps), step_noise)
    x = gaussian(SHAPE, "start")
    for step, timestep in enumerate(timesteps):
        torch.testing.assert_close(trace[step], x.float(), rtol=0, atol=TOLERANCE)
        x0 = predicted_latent(x.float(), timestep)
        x = scheduler.step(v_of(x, x0, scheduler, timestep), timestep, x).prev_sample
    torch.testing.assert_close(trace[-1], x.float(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m_sde(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = CogVideoXDPMScheduler(**CONFIG)
    timesteps = on_our_levels(scheduler, NoiseSchedule().sampling(steps), steps)
    trace = ours(DPMpp2MSDESampler(steps), step_noise)
    x, x0_previous = gaussian(SHAPE, "start"), None
    for step, timestep in enumerate(timesteps):
        torch.testing.assert_close(trace[step], x.float(), rtol=0, atol=TOLERANCE)
        # It draws twice on most steps and uses the second draw: here both are the step's noise.
        noise = step_noise(step)
        monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *_, noise=noise, **__: noise)
        x0 = predicted_latent(x.float(), timestep)
        v = v_of(x, x0, scheduler, timestep)
        back = timesteps[step - 1] if step else None
        x, x0_previous = scheduler.step(v, x0_previous, timestep, back, x)
    torch.testing.assert_close(trace[-1], x.float(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("steps", "linear"), [(50, 25), (50, 10), (16, 8), (7, 6)])
def test_linear_quadratic_spacing(steps: int, linear: int) -> None:
    """Against the schedule that Mochi and LTX use: linear up to the threshold, which is linear / 1000 here."""
    expected = [1 - left for left in linear_quadratic_schedule(steps, linear / 1000, linear)]
    assert linear_quadratic_progress(steps, linear, 1000) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "algorithm"), [(DPMpp2MSampler, "dpmsolver++"), (DPMpp2MSDESampler, "sde-dpmsolver++")]
)
@pytest.mark.parametrize("spacing", ["trailing", "linear_quadratic"])
def test_dpmpp_2m_on_any_levels(kind: type[Sampler], algorithm: str, spacing: Spacing) -> None:
    """diffusers' general multistep solver, given our levels as sigma = sqrt(1 - a^2) / a.

    Without zero terminal SNR: it extrapolates from the first prediction by a finite log-SNR only.
    """
    steps, schedule = 12, NoiseSchedule(zero_terminal_snr=False)
    levels = schedule.sampling(steps, spacing)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type=algorithm, solver_type="midpoint", prediction_type="sample", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    scheduler.timesteps = levels.timesteps
    a = levels.sqrt_alpha_bar.double()
    scheduler.sigmas = ((1 - a) * (1 + a)).sqrt() / a
    trace = ours(kind(steps, spacing=spacing), step_noise, schedule)
    x = gaussian(SHAPE, "start")
    for step, timestep in enumerate(levels.timesteps.tolist()):
        torch.testing.assert_close(trace[step], x, rtol=0, atol=TOLERANCE)
        x0 = predicted_latent(x, timestep)
        x = scheduler.step(x0, timestep, x, variance_noise=step_noise(step)).prev_sample
    torch.testing.assert_close(trace[-1], x, rtol=0, atol=TOLERANCE)
