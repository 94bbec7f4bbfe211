"""Train a transformer of the demo on latents that are there already: the first one together with its tiny text
encoder, the other members of the family with that encoder as it is.

Uses the framework's own network, schedule and loss. bf16 autocast, Muon for matrices inside the blocks and AdamW
for the rest, averaged weights, caption dropout.

Letters: b batch, f latent frames, z latent channels, y x latent height and width, l text tokens, e text width.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from cogvideox.config.schema import ModelConfig
from cogvideox.config.targets import instantiate
from cogvideox.model.frame_padding import pad_frames
from cogvideox.model.image_condition import place_first
from cogvideox.weights.sat_folder import read_checkpoint, write_checkpoint
from torch import Tensor, nn
from transformers import T5EncoderModel

from .captions import caption
from .latents import load_images, load_world
from .optim import Average, MuonAndAdam, learning_rate
from .text import CaptionIds, build_encoder, build_tokenizer, save_text_model

SEED = 11
PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class Recipe:
    """How long and how fast."""

    steps: int
    batch: int = 20
    muon_lr: float = 0.02
    adam_lr: float = 1e-3
    caption_dropout: float = 0.1
    spell_share: float = 0.04
    average_decay: float = 0.998
    peak: float = 1.0  # learning rates relative to the two above
    high_noise: bool = False  # timesteps with density rising linearly towards pure noise, where layout is decided


# What is where is learnt first, from much noise; then edges, from all levels alike.
BASE = Recipe(steps=2200, high_noise=True)
FINISH = Recipe(steps=1200, peak=0.6)
# The other members: smaller, and with words that are known already.
MEMBER = Recipe(steps=4000, batch=24)
ROTARY_FINISH = Recipe(steps=2000, batch=24, peak=0.7)
I2V_FINISH = Recipe(steps=4000, batch=24, peak=0.7)


class TextAndVideo(nn.Module):
    """Both networks as one module, so that one average covers them."""

    def __init__(self, transformer: nn.Module, text_encoder: T5EncoderModel):
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder


@dataclass(frozen=True)
class Place:
    """Where weights lie: the transformer in SAT's layout, the text encoder as a Hugging Face folder."""

    transformer: Path
    text: Path


def build(config: ModelConfig, text: Path | None = None) -> TextAndVideo:
    """Random weights, fp32; with `text` that encoder, frozen."""
    torch.manual_seed(SEED)
    transformer = instantiate(config.network_config, dtype=torch.float32)
    if text is None:
        return TextAndVideo(transformer, build_encoder(build_tokenizer())).train()
    encoder = T5EncoderModel.from_pretrained(text)
    return TextAndVideo(transformer, encoder.requires_grad_(False)).train()


def train(
    config: ModelConfig,
    world: Path,
    out: Place,
    recipe: Recipe,
    *,
    start: Place | None = None,
    text: Path | None = None,
    images: Path | None = None,
) -> None:
    """Writes `out` at the end, and beside `world` every five minutes.

    start: weights to go on from; text: a finished encoder, which is not trained; images: the first frames' latents,
    for image-to-video.
    """
    means, deviations, specs = load_world(world)
    networks = build(config, text)
    done = load(networks, start) if start else 0
    torch.manual_seed(SEED + done)
    schedule, loss_of = instantiate(config.schedule_config), instantiate(config.loss_fn_config)
    optimizer = _optimizer(networks, recipe)
    average = Average(networks, recipe.average_decay)
    ids_of, rng = CaptionIds(recipe.spell_share), random.Random(SEED + done)
    image_of = FirstFrames(config, images) if images else None
    patch_frames = networks.transformer.network.patch_size[0]
    begin = last_saved = time.perf_counter()
    recent = torch.zeros(0)
    for step in range(recipe.steps):
        picked = torch.randint(len(specs), (recipe.batch,))
        latent = means[picked].float() + deviations[picked].float() * torch.randn(means[picked].shape)
        latent = pad_frames(config.scale_factor * latent, patch_frames)
        noise = torch.randn(latent.shape)
        timestep = _timesteps(recipe.batch, schedule.num_timesteps, recipe.high_noise)
        captions = [caption(specs[index], rng) for index in picked.tolist()]
        with torch.autocast("cpu", torch.bfloat16):
            context = networks.text_encoder(input_ids=ids_of(captions, rng)).last_hidden_state
            keep = torch.rand(recipe.batch) >= recipe.caption_dropout
            context = context * keep[:, None, None]
            noised = schedule.add_noise(latent, noise, timestep)
            if image_of is not None:
                noised = torch.cat([noised, image_of(picked, latent.shape[1])], dim=2)
            v_prediction = networks.transformer(noised, timestep, context)
        losses = loss_of(v_prediction, latent, noise, schedule.level(timestep))
        losses.mean().backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step(recipe.peak * learning_rate(step / recipe.steps))
        average.update(step)
        recent = torch.cat([recent, losses.detach()])
        if step % 50 == 49:
            print(
                f"transformer step {step + 1} {time.perf_counter() - begin:.0f}s loss {recent.mean():.4f}", flush=True
            )
            recent = torch.zeros(0)
        if time.perf_counter() - last_saved > 300:
            last_saved = time.perf_counter()
            beside = Place(world.parent / out.transformer.name, world.parent / "t5")
            save(networks, average.values, beside, done + step + 1)
    save(networks, average.values, out, done + recipe.steps)


class FirstFrames:
    """Image latents of the world's clips, as image-to-video training shows them to the network."""

    def __init__(self, config: ModelConfig, images: Path):
        self.means, self.deviations = load_images(images)
        self.scale = config.image_latent_scale or config.scale_factor
        self.dropout = config.noised_image_dropout

    def __call__(self, picked: Tensor, frames: int) -> Tensor:
        """[b] -> [b, f, z, y, x]; zeros for a share of them."""
        mean = self.means[picked].float()
        latent = self.scale * (mean + self.deviations[picked].float() * torch.randn(mean.shape))
        keep = torch.rand(len(picked)) >= self.dropout
        return place_first(latent * keep[:, None, None, None, None], frames)


def load(networks: TextAndVideo, place: Place) -> int:
    """Put the weights that `save` wrote into the networks; returns their step."""
    stored = read_checkpoint(place.transformer)
    module = {name.removeprefix(PREFIX): value.float() for name, value in stored.module.items()}
    networks.transformer.load_state_dict(module)
    encoder = T5EncoderModel.from_pretrained(place.text)
    networks.text_encoder.load_state_dict(encoder.state_dict())
    return stored.iteration


def save(networks: TextAndVideo, values: dict[str, Tensor], place: Place, step: int) -> None:
    """Averaged weights, the transformer in half precision; a frozen text encoder is not written again."""
    kept = {name: parameter.detach().clone() for name, parameter in networks.named_parameters()}
    _put(networks, values)
    transformer = networks.transformer.state_dict()
    module = {PREFIX + name: value.half() for name, value in transformer.items()}
    write_checkpoint(place.transformer, step, module, {}, overwrite=True)
    if any(parameter.requires_grad for parameter in networks.text_encoder.parameters()):
        save_text_model(networks.text_encoder, build_tokenizer(), place.text)
    _put(networks, kept)


@torch.no_grad()
def _put(networks: TextAndVideo, values: dict[str, Tensor]) -> None:
    for name, parameter in networks.named_parameters():
        parameter.copy_(values[name])


def _timesteps(batch: int, total: int, high_noise: bool) -> Tensor:
    """One from each of `batch` equal strata of the distribution: int64 [b]."""
    places = (torch.arange(batch) + torch.rand(batch)) / batch
    places = places.sqrt() if high_noise else places
    return (places * total).long().clamp_(max=total - 1)[torch.randperm(batch)]


def _optimizer(networks: TextAndVideo, recipe: Recipe) -> MuonAndAdam:
    matrices, others = [], []
    for name, parameter in networks.named_parameters():
        if parameter.requires_grad:
            inside = ".layers." in name or ".block." in name or "adaLN_modulations" in name
            plain = parameter.ndim == 2 and "relative_attention_bias" not in name
            (matrices if inside and plain else others).append(parameter)
    return MuonAndAdam(matrices, others, recipe.muon_lr, recipe.adam_lr)
