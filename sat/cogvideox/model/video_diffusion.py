"""The model that is trained and sampled: from a batch of clips and captions to a loss per sample, and back to
a video.

Letters: b batch, t pixel frames, h w pixels; f latent frames, c latent channels, y x latent height and width;
l text tokens, e text width. Latents are real ones or padded ones (see frame_padding; the same for patches of one
frame): the network and the samplers see padded latents, the VAE and files real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from cogvideox.data.rows import AnyBatch, Batch, LatentBatch, drawn
from cogvideox.diffusion import denoiser, timesteps
from cogvideox.diffusion.loss import VideoDiffusionLoss
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.diffusion.timesteps import ImageRandomness, StepRandomness
from cogvideox.geometry import Geometry
from cogvideox.model.frame_padding import num_padded, pad_frames, unpad_frames
from cogvideox.model.image_condition import ImageCondition, add_pixel_noise, place_first
from cogvideox.text.conditioner import Conditioner
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.vae.pieces import to_signed
from cogvideox.vae.posterior import DiagonalGaussian

if TYPE_CHECKING:
    from cogvideox.data.rows import Rows
    from cogvideox.transformer.model import DiffusionTransformer


@dataclass(frozen=True)
class FrozenParts:
    """What is used but never trained. No nn.Module itself, so that nothing of it is registered in the
    model.

    vae: None for a training whose latents and images are all stored, and that samples nothing.
    """

    vae: VideoAutoencoder | None
    conditioner: Conditioner


class VideoDiffusion(nn.Module):
    """A transformer with everything that turns clips into its inputs and its outputs into clips.

    Only the transformer is a registered submodule: engines partition, cast, broadcast and save nothing else,
    and state-dict names are the stored ones (`model.diffusion_model.*`). The frozen parts are placed by
    `model.build`.

    geometry: how clips become tokens. latent_channels: of the VAE. Both are known without one.
    scale_factor: latents that the network sees are scale_factor times the VAE's (2B: 1.15258426).
    seed: of the training randomness (see diffusion.timesteps).
    samples_at_a_time: clips that the VAE encodes or decodes in one call; None for the whole batch.
    image: how an image-to-video model sees its image; None for text-to-video models.
    """

    def __init__(
        self,
        transformer: DiffusionTransformer,
        frozen: FrozenParts,
        schedule: NoiseSchedule,
        loss: VideoDiffusionLoss,
        *,
        geometry: Geometry,
        latent_channels: int,
        scale_factor: float,
        seed: int,
        samples_at_a_time: int | None = None,
        image: ImageCondition | None = None,
    ) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"diffusion_model": transformer})  # stored name
        self.frozen = frozen
        self.schedule = schedule
        self.loss = loss
        self.geometry = geometry
        self.latent_channels = latent_channels
        self.scale_factor = scale_factor
        self.seed = seed
        self.samples_at_a_time = samples_at_a_time
        self.image = image

    @property
    def patch_frames(self) -> int:
        """Latent frames of a patch: 1, or 2 for CogVideoX1.5."""
        return self.transformer.network.patch_size[0]

    @property
    def transformer(self) -> DiffusionTransformer:
        return cast("DiffusionTransformer", self.model["diffusion_model"])

    @property
    def vae(self) -> VideoAutoencoder:
        assert self.frozen.vae is not None, "this model was built without its VAE"
        return self.frozen.vae

    def give_up_vae(self) -> None:
        """Give the VAE's memory back: from here on latents come from a cache, and none are decoded."""
        self.frozen = replace(self.frozen, vae=None)

    @property
    def conditioner(self) -> Conditioner:
        return self.frozen.conditioner

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def forward(self, batch: AnyBatch, randomness: StepRandomness | None = None) -> Tensor:
        """Loss per sample, fp32 [b].

        The randomness is what was drawn for the batch beside (data.rows.DrawnBatch), or is given, or is drawn now, from
        (seed, epoch, sample id); captions and images are dropped only in training mode. In evaluation mode the same
        batch therefore always has the same loss. Raises: ShapeError for a size that the VAE or the transformer can't
        take.
        """
        given = randomness
        batch, known = drawn(batch, lambda rows: self.draw(rows) if given is None else given)
        randomness = known.to(self.device)
        latent = self.sample_latent(self.posterior(batch), randomness.posterior_noise)
        context = self.encode_text(batch.rows.captions, randomness.keep_caption)
        image_latent = None
        if self.image is not None:
            assert batch.first_frame is not None, "image-to-video models need the first frame of each clip"
            image_latent = self._noised_image_latent(batch.first_frame, latent.shape[1], randomness.image)
        return self.loss_of(latent, context, randomness, image_latent)

    def loss_of(
        self, latent: Tensor, context: Tensor, randomness: StepRandomness, image_latent: Tensor | None = None
    ) -> Tensor:
        """Loss per sample, fp32 [b], of real latents [b, f, c, y, x] and contexts [b, l, e] that are there already.

        image_latent: padded, as `image_latent` gives it; for image-to-video models. The loss runs over the padding
        too, which is a copy of a real latent.
        """
        latent = pad_frames(latent, self.patch_frames)
        level = self.schedule.level(randomness.timestep)
        noised_latent = denoiser.add_noise(latent, randomness.noise, level)
        v_prediction = self._predict(noised_latent, randomness.timestep, context, image_latent)
        return self.loss(v_prediction, latent, randomness.noise, level)

    def draw(self, rows: Rows, training: bool | None = None) -> StepRandomness:
        """The randomness of a batch's rows in training, on the CPU, pinned where the model is on CUDA.

        training: whether captions and images may be dropped; None: as the model's mode is. May run in a thread, which
        states it: the mode changes meanwhile.
        """
        positions = rows.positions.tolist() if self.loss.stratified_timesteps else None
        may_drop = self.training if training is None else training
        return self._draw(rows, self.seed, rows.epochs.tolist(), positions, may_drop=may_drop)

    def draw_fixed(self, rows: Rows, seed: int) -> StepRandomness:
        """For evaluation: each clip meets the same noise whenever it is evaluated; timesteps are spread evenly over
        the clips' positions; captions and images are kept. May run in a thread."""
        return self._draw(rows, seed, [0] * len(rows), rows.positions.tolist(), may_drop=False)

    def _draw(
        self, rows: Rows, seed: int, epochs: list[int], positions: list[int] | None, *, may_drop: bool
    ) -> StepRandomness:
        num_frames, height, width = rows.bucket
        frames = self.num_latent_frames(num_frames)
        padded, *rest = self.latent_shape(frames, height, width)
        randomness = timesteps.draw(
            seed,
            epochs,
            rows.sample_ids.tolist(),
            (frames, *rest),
            self.schedule.num_timesteps,
            padded_frames=padded,
            caption_dropout=self.conditioner.caption_dropout if may_drop else 0.0,
            positions=positions,
            image_size=None if self.image is None else (height, width),
            image_dropout=self.image.dropout if may_drop and self.image is not None else 0.0,
        )
        return randomness.pinned() if self.device.type == "cuda" else randomness

    def image_latent(self, first_frame: Tensor, num_latent_frames: int, noise: Tensor | None = None) -> Tensor:
        """What an image-to-video network sees beside the noised latent, fp32 [b, f, c, y, x], padded.

        first_frame: uint8 [b, 3, h, w]; num_latent_frames: real ones; noise: standard normal [b, 1, c, y, x], None
        for the posterior's mean. Raises: ShapeError.
        """
        assert first_frame.dtype == torch.uint8, f"images stay uint8 until here, got {first_frame.dtype}"
        return self._encode_image(to_signed(first_frame), num_latent_frames, noise)

    def _noised_image_latent(self, first_frame: Tensor, frames: int, randomness: ImageRandomness | None) -> Tensor:
        """The image latent of training: noise on the pixels, and zeros where the image is dropped."""
        assert randomness is not None, "randomness without image draws was given to an image-to-video model"
        pixels = to_signed(first_frame.to(self.device, non_blocking=True))
        noised = add_pixel_noise(pixels, randomness.pixel_noise, randomness.sigma)
        latent = self._encode_image(noised, frames, randomness.posterior_noise)
        return latent.masked_fill(~randomness.keep[:, None, None, None, None], 0.0)

    def _encode_image(self, pixels: Tensor, num_latent_frames: int, noise: Tensor | None) -> Tensor:
        """Pixels [b, 3, h, w], about [-1, 1]; see image_latent."""
        assert self.image is not None, "a text-to-video model takes no image"
        latent = self.image.latent_scale * self.encode(pixels[:, None]).at(noise)
        return place_first(latent, num_padded(num_latent_frames, self.patch_frames))

    def encode_video(self, video: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        """uint8 video [b, t, 3, h, w] -> real latent fp32 [b, f, c, y, x], scaled; the posterior's mean without
        noise."""
        assert video.dtype == torch.uint8, f"clips stay uint8 until here, got {video.dtype}"
        return self.sample_latent(self.encode(video), posterior_noise)

    def posterior(self, batch: Batch) -> DiagonalGaussian:
        """What the VAE makes of a batch's clips, unscaled, on the model's device: computed now, or read from a cache.
        Raises: ShapeError."""
        if isinstance(batch, LatentBatch):
            stored = batch.to(self.device)
            return DiagonalGaussian(stored.mean, stored.log_variance)
        assert batch.video.dtype == torch.uint8, f"clips stay uint8 until here, got {batch.video.dtype}"
        return self.encode(batch.video)

    def sample_latent(self, posterior: DiagonalGaussian, noise: Tensor | None) -> Tensor:
        """A scaled latent fp32 [b, f, c, y, x] of a posterior; its mean without noise."""
        return self.scale_factor * posterior.at(noise)

    @torch.no_grad()
    def encode(self, video: Tensor) -> DiagonalGaussian:
        """Video [b, t, 3, h, w], uint8 or floats in about [-1, 1], to the posterior, unscaled, on the model's device.
        The VAE fetches the clip piece by piece. Raises: ShapeError."""
        posteriors = [self.vae.encode(piece) for piece in self._pieces(video)]
        mean = torch.cat([each.mean for each in posteriors]).to(self.device)
        return DiagonalGaussian(mean, torch.cat([each.logvar for each in posteriors]).to(self.device))

    def _pieces(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split(self.samples_at_a_time or len(values))

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str], keep: Tensor | None = None) -> Tensor:
        """captions (b of them), keep bool [b] -> context [b, l, e] on the model's device; zeros where keep is
        False."""
        return self.conditioner.encode(captions, keep, self.device)

    def denoise(
        self,
        noised_latent: Tensor,
        timestep: Tensor,
        context: Tensor,
        sqrt_alpha_bar: Tensor | None = None,
        image_latent: Tensor | None = None,
    ) -> Tensor:
        """The network's idea of the clean latent, fp32 [b, f, c, y, x], padded: what samplers ask for.

        noised_latent fp32 [b, f, c, y, x], padded; timestep int64 [b]; context [b, l, e]; sqrt_alpha_bar fp32 [b],
        the level of noised_latent when it differs from the training table's at `timestep`; image_latent: see
        image_latent(), for each of the b.
        """
        level = self.schedule.level(timestep) if sqrt_alpha_bar is None else sqrt_alpha_bar
        v_prediction = self._predict(noised_latent, timestep, context, image_latent)
        return denoiser.to_clean(noised_latent, v_prediction, level)

    def _predict(self, noised_latent: Tensor, timestep: Tensor, context: Tensor, image_latent: Tensor | None) -> Tensor:
        assert (image_latent is None) == (self.image is None), "image-to-video models, and only they, need an image"
        if image_latent is not None:
            noised_latent = torch.cat([noised_latent, image_latent], dim=2)
        return self.transformer(noised_latent, timestep, context)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent [b, f, c, y, x], padded -> video float [b, t, 3, h, w], about [-1, 1]."""
        latent = self.unpad(latent) / self.scale_factor
        return torch.cat([self.vae.decode(piece) for piece in self._pieces(latent)])

    @torch.no_grad()
    def decode_chunks(self, latent: Tensor) -> Iterator[Tensor]:
        """As `decode`, a few frames at a time [b, t', 3, h, w], which bounds the memory."""
        return self.vae.decode_chunks(self.unpad(latent) / self.scale_factor)

    def unpad(self, latent: Tensor) -> Tensor:
        """Padded latents [..., f, c, y, x] to real ones: what is decoded and stored."""
        return unpad_frames(latent, self.patch_frames)

    def num_latent_frames(self, num_frames: int) -> int:
        """Real latents of 4k + 1 pixel frames: the first frame alone, then 4 at a time."""
        return self.geometry.latent_frames(num_frames)

    def latent_shape(self, num_latent_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(f, c, y, x), padded, of a video of height x width pixels and so many real latents. Raises: ShapeError."""
        frames = num_padded(num_latent_frames, self.patch_frames)
        return frames, self.latent_channels, *self.geometry.latent_size(height, width)
