"""The v-parameterisation: between clean latent, noise, noised latent and v.

Letters: b batch, ... any further axes. Every function works in fp32 and takes `sqrt_alpha_bar`, the fp32
square root of cumulative alpha in [0, 1], either one value per sample [b] or a scalar tensor [].

Source: Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", section 4 (v = a
* noise - s * x0).
"""

from __future__ import annotations

import torch
from torch import Tensor


def noise_level(sqrt_alpha_bar: Tensor) -> Tensor:
    """sqrt(1 - a^2), same shape. Written (1 - a)(1 + a), which keeps full fp32 precision for a near 1."""
    return torch.sqrt((1.0 - sqrt_alpha_bar) * (1.0 + sqrt_alpha_bar))


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Reshape [b] to [b, 1, 1, ...] with as many axes as `like`; a scalar stays a scalar."""
    if value.ndim == 0:
        return value
    assert value.shape == like.shape[:1], f"one value per sample needed: {tuple(value.shape)} for {tuple(like.shape)}"
    return value.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(latent: Tensor, noise: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
    """noised_latent = a * latent + sqrt(1 - a^2) * noise. fp32 [b, ...]."""
    a = per_sample(sqrt_alpha_bar, latent)
    return a * latent.float() + noise_level(a) * noise.float()


def velocity(latent: Tensor, noise: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
    """The v that the network has to predict: a * noise - sqrt(1 - a^2) * latent. fp32 [b, ...]."""
    a = per_sample(sqrt_alpha_bar, latent)
    return a * noise.float() - noise_level(a) * latent.float()


def to_clean(noised_latent: Tensor, v_prediction: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
    """predicted_latent = a * noised_latent - sqrt(1 - a^2) * v_prediction. fp32 [b, ...]."""
    a = per_sample(sqrt_alpha_bar, noised_latent)
    return a * noised_latent.float() - noise_level(a) * v_prediction.float()
