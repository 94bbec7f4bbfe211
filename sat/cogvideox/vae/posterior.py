"""The distribution that the encoder returns.

Letters: b batch, f latent frames, c latent channels, y x latent height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal distribution per latent element.

    mean: b f c y x, float32 (float64 for a float64 autoencoder).
    logvar: the same shape, natural logarithm of the variance, as the network wrote it; clamped to [-30, 20] when used.
    """

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, b f c y x."""
        return torch.exp(0.5 * self.logvar.clamp(*LOGVAR_RANGE))

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise. `noise` is standard normal of the mean's shape; without it torch's generator draws it."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        assert noise.shape == self.mean.shape, f"noise {tuple(noise.shape)} for a mean of {tuple(self.mean.shape)}"
        return self.mean + self.std * noise.to(self.mean)

    def at(self, noise: Tensor | None) -> Tensor:
        """The sample of this noise; the mean where there is none."""
        return self.mode() if noise is None else self.sample(noise)

    def mode(self) -> Tensor:
        """The most likely latent, which is the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal, summed over all but the batch: b."""
        logvar = self.logvar.clamp(*LOGVAR_RANGE)
        return 0.5 * (self.mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)
