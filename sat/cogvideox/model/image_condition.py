"""The image that an image-to-video model continues: the first frame of a clip, as further input channels.

Letters: b batch, h w pixels, f latent frames, c latent channels, y x latent height and width.

Source: CogVideoX (arXiv 2408.06072), appendix on the image-to-video model: the image's latent is concatenated with
the noised latent on channels, and noise on the image keeps training close to images that are no video frames.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cogvideox.errors import ConfigError


@dataclass(frozen=True)
class ImageCondition:
    """How the image reaches the network.

    latent_scale: the network sees latent_scale times the VAE's latent of the image. 1.0-I2V was trained with the
        model's scale_factor. For 1.5-I2V several conventions are about; with 1.0 the released weights follow their
        image.
    dropout: share of the training samples whose image is replaced by zeros; 0.05 in the published models.
    Raises: ConfigError for a scale that is not positive, or a dropout outside [0, 1].
    """

    latent_scale: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.latent_scale <= 0:
            raise ConfigError(f"model.image_latent_scale is {self.latent_scale:g}, must be above 0 or null")
        if not 0.0 <= self.dropout <= 1.0:
            raise ConfigError(f"model.noised_image_dropout is {self.dropout:g}, must be between 0 and 1")


def add_pixel_noise(image: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """image + sigma * noise: image and noise [b, 3, h, w], image in [-1, 1]; sigma fp32 [b], one per sample.

    Not clamped: the VAE of the released models was given what lies outside [-1, 1] too.
    """
    return image + sigma[:, None, None, None] * noise


def place_first(image_latent: Tensor, frames: int) -> Tensor:
    """The image's latent [b, 1, c, y, x] in the first of `frames` latents, zeros behind it: [b, f, c, y, x].

    frames counts padded latents (see frame_padding): where a clip begins with its padding, the image stands there and
    the first real latent is zeros, as the released 1.5 weights are sampled by SAT and by diffusers.
    """
    placed = image_latent.new_zeros(image_latent.shape[0], frames, *image_latent.shape[2:])
    placed[:, :1] = image_latent
    return placed
