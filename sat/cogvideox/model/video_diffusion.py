"""The model that is trained and sampled: from a batch of clips and captions to a loss per sample, and back to
a video.

Letters: b batch, t pixel frames, h w pixels; f latent frames, c latent channels, y x latent height and width;
l text tokens, e text width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from cogvideox.diffusion import denoiser, timesteps
from cogvideox.diffusion.loss import VideoDiffusionLoss
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.diffusion.timesteps import StepRandomness
from cogvideox.text.conditioner import Conditioner
from cogvideox.vae.autoencoder import VideoAutoencoder

if TYPE_CHECKING:
    from cogvideox.data.batches import Batch
    from cogvideox.transformer.model import DiffusionTransformer


@dataclass(frozen=True)
class FrozenParts:
    """What is used but never trained. No nn.Module itself, so that nothing of it is registered in the
    model."""

    vae: VideoAutoencoder
    conditioner: Conditioner


class VideoDiffusion(nn.Module):
    """A transformer with everything that turns clips into its inputs and its outputs into clips.

    Only the transformer is a registered submodule: engines partition, cast, broadcast and save nothing else,
    and state-dict names are the stored ones (`model.diffusion_model.*`). The frozen parts are moved with
    `move_frozen`.

    scale_factor: latents that the network sees are scale_factor times the VAE's (2B: 1.15258426).
    seed: of the training randomness (see diffusion.timesteps).
    samples_at_a_time: clips that the VAE encodes or decodes in one call; None for the whole batch.
    """

    def __init__(
        self,
        transformer: DiffusionTransformer,
        frozen: FrozenParts,
        schedule: NoiseSchedule,
        loss: VideoDiffusionLoss,
        *,
        scale_factor: float,
        seed: int,
        samples_at_a_time: int | None = None,
    ) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"diffusion_model": transformer})  # stored name
        self.frozen = frozen
        self.schedule = schedule
        self.loss = loss
        self.scale_factor = scale_factor
        self.seed = seed
        self.samples_at_a_time = samples_at_a_time

    @property
    def transformer(self) -> DiffusionTransformer:
        return cast("DiffusionTransformer", self.model["diffusion_model"])

    @property
    def vae(self) -> VideoAutoencoder:
        return self.frozen.vae

    @property
    def conditioner(self) -> Conditioner:
        return self.frozen.conditioner

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def move_frozen(self, device: torch.device | str, dtype: torch.dtype) -> VideoDiffusion:
        """Move and cast the VAE and the text encoder."""
        self.vae.to(device=device, dtype=dtype)
        self.conditioner.move(device, dtype)
        return self

    def forward(self, batch: Batch, randomness: StepRandomness | None = None) -> Tensor:
        """Loss per sample, fp32 [b].

        Without `randomness` it is drawn from (seed, epoch, sample id); caption dropout only in training mode.
        In evaluation mode the same batch therefore always has the same loss. Raises: ShapeError for a size
        that the VAE or the transformer can't take.
        """
        posterior_mean, posterior_std = self._posterior(batch.video)
        if randomness is None:
            randomness = self.draw(batch, posterior_mean.shape[1:])
        randomness = randomness.to(self.device)
        latent = self.scale_factor * (posterior_mean + posterior_std * randomness.posterior_noise)
        context = self.encode_text(batch.captions, randomness.keep_caption)
        return self.loss_of(latent, context, randomness)

    def loss_of(self, latent: Tensor, context: Tensor, randomness: StepRandomness) -> Tensor:
        """Loss per sample, fp32 [b], of latents [b, f, c, y, x] and contexts [b, l, e] that are there
        already."""
        level = self.schedule.level(randomness.timestep)
        noised_latent = denoiser.add_noise(latent, randomness.noise, level)
        v_prediction = self.transformer(noised_latent, randomness.timestep, context)
        return self.loss(v_prediction, latent, randomness.noise, level)

    def draw(self, batch: Batch, latent_shape: Sequence[int]) -> StepRandomness:
        """The randomness of a batch, on the CPU. latent_shape: (f, c, y, x) of one sample."""
        return timesteps.draw(
            self.seed,
            batch.epochs.tolist(),
            batch.sample_ids.tolist(),
            latent_shape,
            self.schedule.num_timesteps,
            caption_dropout=self.conditioner.caption_dropout if self.training else 0.0,
            positions=batch.positions.tolist() if self.loss.stratified_timesteps else None,
        )

    def encode_video(self, video: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        """uint8 video [b, t, 3, h, w] -> latent fp32 [b, f, c, y, x], scaled; the posterior's mean without
        noise."""
        mean, std = self._posterior(video)
        return self.scale_factor * (mean if posterior_noise is None else mean + std * posterior_noise)

    @torch.no_grad()
    def _posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 video [b, t, 3, h, w] -> mean and standard deviation, fp32 [b, f, c, y, x]."""
        assert video.dtype == torch.uint8, f"clips stay uint8 until here, got {video.dtype}"
        video = video.to(self.device, non_blocking=True)
        parts = [self.vae.encode(to_signed(piece)) for piece in self._pieces(video)]
        return torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])

    def _pieces(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split(self.samples_at_a_time or len(values))

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str], keep: Tensor | None = None) -> Tensor:
        """captions (b of them), keep bool [b] -> context [b, l, e]; zeros where keep is False."""
        return self.conditioner.encode(captions, keep)

    def denoise(
        self, noised_latent: Tensor, timestep: Tensor, context: Tensor, sqrt_alpha_bar: Tensor | None = None
    ) -> Tensor:
        """The network's idea of the clean latent, fp32 [b, f, c, y, x]: what samplers ask for.

        noised_latent fp32 [b, f, c, y, x]; timestep int64 [b]; context [b, l, e]; sqrt_alpha_bar fp32 [b],
        the level of noised_latent when it differs from the training table's at `timestep`.
        """
        level = self.schedule.level(timestep) if sqrt_alpha_bar is None else sqrt_alpha_bar
        v_prediction = self.transformer(noised_latent, timestep, context)
        return denoiser.to_clean(noised_latent, v_prediction, level)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent [b, f, c, y, x] -> video float [b, t, 3, h, w], about [-1, 1]."""
        return torch.cat([self.vae.decode(piece / self.scale_factor) for piece in self._pieces(latent)])

    @torch.no_grad()
    def decode_chunks(self, latent: Tensor) -> Iterator[Tensor]:
        """As `decode`, a few frames at a time [b, t', 3, h, w], which bounds the memory."""
        return self.vae.decode_chunks(latent / self.scale_factor)

    def latent_shape(self, num_latent_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(f, c, y, x) of a video of height x width pixels."""
        step = self.vae.spatial_compression
        return num_latent_frames, self.vae.z_channels, height // step, width // step


def to_signed(video: Tensor) -> Tensor:
    """uint8 pixels 0..255 -> fp32 in [-1, 1]."""
    return (video.float() - 127.5) / 127.5
