"""The training loss. Letters: b batch, f y x latent frames, height and width, c latent channels."""

from __future__ import annotations

from torch import Tensor

from cogvideox.diffusion import denoiser
from cogvideox.errors import ConfigError


class VideoDiffusionLoss:
    """Mean squared error of v, per sample.

    Written on clean latents it is mean((predicted_latent - latent)^2) / (1 - a^2); both forms are equal, and
    this one loses no digits where a is near 1.

    min_snr_gamma: clamp the weight 1 / (1 - a^2) = SNR + 1 of each sample at this value. None: no clamp.
    stratified_timesteps: spread the timesteps of a global batch evenly (see timesteps.stratified_timestep).

    Source: Salimans & Ho 2022, section 4; Hang et al. 2023, "Efficient Diffusion Training via Min-SNR
    Weighting Strategy".
    Raises: ConfigError when min_snr_gamma is not above 0.
    """

    def __init__(self, min_snr_gamma: float | None = None, stratified_timesteps: bool = False) -> None:
        if min_snr_gamma is not None and min_snr_gamma <= 0.0:
            raise ConfigError(f"loss: min_snr_gamma is {min_snr_gamma}, must be above 0 (5.0 is usual) or null")
        self.min_snr_gamma = min_snr_gamma
        self.stratified_timesteps = stratified_timesteps

    def __call__(self, v_prediction: Tensor, latent: Tensor, noise: Tensor, sqrt_alpha_bar: Tensor) -> Tensor:
        """v_prediction, latent, noise [b, f, c, y, x]; sqrt_alpha_bar fp32 [b] -> loss fp32 [b]."""
        error = v_prediction.float() - denoiser.velocity(latent, noise, sqrt_alpha_bar)
        loss = error.square().flatten(1).mean(dim=1)
        if self.min_snr_gamma is None:
            return loss
        variance = denoiser.noise_level(sqrt_alpha_bar).square()
        return loss * (self.min_snr_gamma * variance).clamp(max=1.0)
