from __future__ import annotations

import pytest
import torch
from cogvideox.vae.posterior import DiagonalGaussian


def test_sample_uses_the_given_noise() -> None:
    mean, logvar, noise = torch.randn(3, 2, 3, 4, 2, 2).unbind()
    posterior = DiagonalGaussian(mean, logvar)
    torch.testing.assert_close(posterior.sample(noise), mean + torch.exp(logvar / 2) * noise)
    assert torch.equal(posterior.mode(), mean)


def test_extreme_log_variances_stay_finite() -> None:
    logvar = torch.tensor([-1e4, 1e4]).reshape(1, 1, 1, 1, 2)
    std = DiagonalGaussian(torch.zeros(1, 1, 1, 1, 2), logvar).std
    torch.testing.assert_close(std.flatten(), torch.tensor([-15.0, 10.0]).exp())


def test_kl_is_torch_distributions_kl() -> None:
    mean, logvar = torch.randn(2, 2, 3, 4, 2, 2).unbind()
    own = torch.distributions.Normal(mean, torch.exp(logvar / 2))
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected.flatten(1).sum(1))


def test_half_noise_is_lifted_to_the_posterior() -> None:
    posterior = DiagonalGaussian(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))
    assert posterior.sample(torch.randn(1, 1, 2, 2, 2).bfloat16()).dtype == torch.float32


def test_noise_of_another_shape_is_a_bug() -> None:
    posterior = DiagonalGaussian(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2))
    with pytest.raises(AssertionError, match=r"noise \(1, 1, 2, 2, 2\)"):
        posterior.sample(torch.randn(1, 1, 2, 2, 2))
