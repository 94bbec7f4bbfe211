"""The loss against the form on clean latents, and min-SNR weighting."""

from __future__ import annotations

import pytest
import torch
from cogvideox.diffusion import denoiser
from cogvideox.diffusion.loss import VideoDiffusionLoss
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.errors import ConfigError

SHAPE = (3, 4, 5, 6)
TIMESTEPS = torch.tensor([0, 1, 10, 100, 500, 900, 998, 999])


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """v_prediction, latent, noise, level, for one sample per timestep."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(TIMESTEPS), *SHAPE)
    v, latent, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    return v, latent, noise, NoiseSchedule().level(TIMESTEPS)


def test_equals_the_weighted_error_of_clean_latents() -> None:
    v, latent, noise, level = example()
    loss = VideoDiffusionLoss()(v, latent, noise, level)
    a = level.double()[:, None, None, None, None]
    noised = a * latent + (1 - a**2).sqrt() * noise
    predicted = a * noised - (1 - a**2).sqrt() * v
    weighted = ((predicted - latent) ** 2 / (1 - a**2)).flatten(1).mean(1)
    torch.testing.assert_close(loss.double(), weighted, rtol=5e-7, atol=2e-7)


def test_is_the_plain_error_of_v() -> None:
    v, latent, noise, level = example()
    target = denoiser.velocity(latent, noise, level)
    plain = torch.stack([torch.nn.functional.mse_loss(v[i], target[i]) for i in range(len(v))])
    torch.testing.assert_close(VideoDiffusionLoss()(v, latent, noise, level), plain, rtol=0, atol=2e-7)


def test_perfect_prediction_costs_nothing() -> None:
    _, latent, noise, level = example()
    assert (VideoDiffusionLoss()(denoiser.velocity(latent, noise, level), latent, noise, level) == 0).all()


def test_half_precision_predictions_are_compared_in_fp32() -> None:
    v, latent, noise, level = example()
    loss = VideoDiffusionLoss()(v.bfloat16(), latent, noise, level)
    assert loss.dtype == torch.float32 and loss.shape == (len(TIMESTEPS),)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 50.0])
def test_min_snr_clamps_each_sample_by_itself(gamma: float) -> None:
    v, latent, noise, level = example()
    plain = VideoDiffusionLoss()(v, latent, noise, level)
    clamped = VideoDiffusionLoss(min_snr_gamma=gamma)(v, latent, noise, level)
    weight = 1 / (1 - level.double() ** 2)
    torch.testing.assert_close(clamped.double(), plain * weight.clamp(max=gamma) / weight, rtol=1e-5, atol=1e-6)
    alone = VideoDiffusionLoss(min_snr_gamma=gamma)(v[2:3], latent[2:3], noise[2:3], level[2:3])
    torch.testing.assert_close(alone[0], clamped[2])


def test_min_snr_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="min_snr_gamma is 0, must be above 0"):
        VideoDiffusionLoss(min_snr_gamma=0)


@pytest.mark.parametrize("scalar", [False, True])
def test_v_and_clean_latent_are_inverse(scalar: bool) -> None:
    _, latent, noise, level = example()
    level = level[3] if scalar else level
    noised = denoiser.add_noise(latent, noise, level)
    v = denoiser.velocity(latent, noise, level)
    torch.testing.assert_close(denoiser.to_clean(noised, v, level), latent, rtol=0, atol=2e-6)


def test_noise_level_keeps_its_digits_near_one() -> None:
    level = NoiseSchedule(shift_scale=1.0).sqrt_alpha_bar[:50]
    exact = (1 - level.double() ** 2).sqrt()
    assert ((denoiser.noise_level(level) - exact) / exact).abs().max() < 2e-7
