"""The randomness of a training step, as a function of (seed, epoch, sample id) and nothing else.

A sample meets the same timestep, noise, posterior noise and caption dropout whatever the world size, the
batch split, the device and the number of resumes. Values come from the counter-based Philox generator, keyed
by a 128-bit hash, drawn on the CPU in fp32.

Letters: b batch, f y x latent frames, height and width, c latent channels, h w pixels.

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd
# log of the noise on the image of image-to-video training: mean and standard deviation. Source: Blattmann et al. 2023,
# "Stable Video Diffusion", which CogVideoX-I2V follows.
LOG_SIGMA = (-3.0, 0.5)


@dataclass(frozen=True)
class ImageRandomness:
    """What is random about the image of image-to-video training.

    sigma: fp32 [b], strength of the noise on pixels in [-1, 1]; pixel_noise: fp32 [b, 3, h, w] and posterior_noise:
    fp32 [b, 1, c, y, x], standard normal; keep: bool [b].
    """

    sigma: Tensor
    pixel_noise: Tensor
    posterior_noise: Tensor
    keep: Tensor

    def to(self, device: torch.device) -> ImageRandomness:
        """The same on another device, see StepRandomness.to."""
        return self._each(lambda part: to_device(part, device))

    def pinned(self) -> ImageRandomness:
        """The same in pinned memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> ImageRandomness:
        parts = (self.sigma, self.pixel_noise, self.posterior_noise, self.keep)
        return ImageRandomness(*map(change, parts))


@dataclass(frozen=True)
class StepRandomness:
    """What is random in one training step.

    timestep: int64 [b]; noise: fp32 [b, f, c, y, x] and posterior_noise: fp32 [b, f', c, y, x], standard normal, f'
    less than f where the network sees padding; keep_caption: bool [b]; image: None for text-to-video models.
    """

    timestep: Tensor
    noise: Tensor
    posterior_noise: Tensor
    keep_caption: Tensor
    image: ImageRandomness | None = None

    def to(self, device: torch.device | str) -> StepRandomness:
        """The same on another device. To CUDA through pinned memory, so that the host does not wait."""
        device = torch.device(device)
        if device.type == "cpu":
            return self
        image = None if self.image is None else self.image.to(device)
        return self._each(lambda part: to_device(part, device), image)

    def pinned(self) -> StepRandomness:
        """The same in pinned memory, from where `to` copies nothing but to the device."""
        return self._each(Tensor.pin_memory, None if self.image is None else self.image.pinned())

    def _each(self, change: Callable[[Tensor], Tensor], image: ImageRandomness | None) -> StepRandomness:
        return StepRandomness(
            timestep=change(self.timestep),
            noise=change(self.noise),
            posterior_noise=change(self.posterior_noise),
            keep_caption=change(self.keep_caption),
            image=image,
        )


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on another device; to CUDA through pinned memory, so that the host does not wait."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


def _digest(key: Sequence[int | str]) -> bytes:
    return hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()


def random_word(*key: int | str) -> int:
    """A uniform integer in 0..2^64-1 that depends on the key only."""
    return int.from_bytes(_digest(key)[:8], "little")


def gaussian(shape: Sequence[int], *key: int | str) -> Tensor:
    """Standard normal values, fp32 on the CPU, that depend on the shape and the key only."""
    bits = np.random.Philox(key=np.frombuffer(_digest(key), dtype=np.uint64))
    return torch.from_numpy(np.random.Generator(bits).standard_normal(tuple(shape), dtype=np.float32))


def uniform_timestep(num_timesteps: int, seed: int, epoch: int, sample_id: int) -> int:
    """A uniform timestep in 0..num_timesteps-1 for one sample in one epoch."""
    return random_word("timestep", seed, epoch, sample_id) * num_timesteps // _WORD


def stratified_timestep(num_timesteps: int, seed: int, position: int) -> int:
    """A timestep for the sample at `position` in the global stream of samples.

    The golden-ratio sequence with a random start: uniform for each sample, and evenly spread over any run of
    consecutive samples, that is over any global batch of any size, however the ranks share it out.
    """
    word = (random_word("stratified", seed) + position * _GOLDEN) % _WORD
    return word * num_timesteps // _WORD


def draw_timesteps(
    num_timesteps: int,
    seed: int,
    epochs: Sequence[int],
    sample_ids: Sequence[int],
    positions: Sequence[int] | None = None,
) -> list[int]:
    """A timestep in 0..num_timesteps-1 for each sample in its epoch; see draw."""
    if positions is None:
        return [uniform_timestep(num_timesteps, seed, *key) for key in zip(epochs, sample_ids, strict=True)]
    assert len(positions) == len(sample_ids), "one position per sample needed"
    return [stratified_timestep(num_timesteps, seed, position) for position in positions]


def keep(what: str, dropout: float, seed: int, epoch: int, sample_id: int) -> bool:
    """False with probability `dropout`. what: "caption" or "image", which are dropped independently."""
    return random_word(what, seed, epoch, sample_id) >= dropout * _WORD


def draw(
    seed: int,
    epoch: int | Sequence[int],
    sample_ids: Sequence[int],
    latent_shape: Sequence[int],
    num_timesteps: int,
    *,
    padded_frames: int | None = None,
    caption_dropout: float = 0.0,
    positions: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    image_dropout: float = 0.0,
) -> StepRandomness:
    """Draw the randomness of a batch. Each value has a key of its own: none changes with what else is drawn.

    epoch: one for all, or one per sample; sample_ids: one integer per sample; latent_shape: (f, c, y, x) of
    one sample; padded_frames: latent frames of the noise when the network sees more than f; positions: the
    samples' positions in the global stream, which turn on stratified timesteps; image_size: (h, w) in pixels of
    the image for image-to-video models, which image_dropout is for.
    """
    epochs = [epoch] * len(sample_ids) if isinstance(epoch, int) else list(epoch)
    keys = list(zip(epochs, sample_ids, strict=True))
    steps = draw_timesteps(num_timesteps, seed, epochs, sample_ids, positions)
    noise_shape = (padded_frames or latent_shape[0], *latent_shape[1:])
    image = None
    if image_size is not None:
        image = _draw_image(seed, keys, (1, *latent_shape[1:]), image_size, image_dropout)
    return StepRandomness(
        timestep=torch.tensor(steps, dtype=torch.int64),
        noise=torch.stack([gaussian(noise_shape, "noise", seed, *key) for key in keys]),
        posterior_noise=torch.stack([gaussian(latent_shape, "posterior", seed, *key) for key in keys]),
        keep_caption=torch.tensor([keep("caption", caption_dropout, seed, *key) for key in keys]),
        image=image,
    )


def _draw_image(
    seed: int,
    keys: Sequence[tuple[int, int]],
    latent_shape: Sequence[int],
    size: tuple[int, int],
    dropout: float,
) -> ImageRandomness:
    mean, deviation = LOG_SIGMA
    strength = torch.cat([gaussian((1,), "image sigma", seed, *key) for key in keys])
    return ImageRandomness(
        sigma=torch.exp(mean + deviation * strength),
        pixel_noise=torch.stack([gaussian((3, *size), "image pixels", seed, *key) for key in keys]),
        posterior_noise=torch.stack([gaussian(latent_shape, "image posterior", seed, *key) for key in keys]),
        keep=torch.tensor([keep("image", dropout, seed, *key) for key in keys]),
    )
