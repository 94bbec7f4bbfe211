"""What a training takes from a cache, and which frozen parts it then has to build all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from cogvideox.caching.opening import Cache, check_cache, open_cache
from cogvideox.config.schema import Config
from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.dataset import VideoDataset
from cogvideox.data.sample import Sample
from cogvideox.log import get_logger
from cogvideox.sampling.prompts import Prompt

_log = get_logger(__name__)


@dataclass(frozen=True)
class Stored:
    """The cache of a run, None without `args.cache`, and whether VAE and text encoder have to be built."""

    cache: Cache | None = None
    needs_vae: bool = True
    needs_text_encoder: bool = True

    def on(self, dataset: VideoDataset, views: int | None = None) -> VideoDataset:
        """A data set, read from the cache if there is one. views: see Cache.on."""
        return dataset if self.cache is None else self.cache.on(dataset, views)


def look_into_cache(
    config: Config,
    dtype: torch.dtype,
    train: VideoDataset,
    held_out: VideoDataset | None,
    previews: Sequence[Prompt],
) -> Stored:
    """Open the cache of a run, and see that it holds what the run needs. Raises: ConfigError, CheckpointError,
    DataError."""
    args = config.train_args
    if args.cache is None:
        return Stored()
    assert isinstance(train.reader, ClipDecoder)
    cache = open_cache(config, dtype, train.reader)
    check_cache(cache, needed_jobs(cache, config, train, held_out), needed_captions(train, held_out, ()))
    # Noise is put on the pixels of the first frame anew in every epoch, which only the VAE can follow.
    needs_vae = config.model.noised_image_input or bool(previews) or cache.latents.online
    needs_text = bool(cache.contexts.missing(needed_captions(train, held_out, previews)))
    names = [name for name, is_needed in (("the VAE", needs_vae), ("the text encoder", needs_text)) if not is_needed]
    if names:
        _log.info("not loaded, the cache stands in for it: %s", " and ".join(names))
    return Stored(cache, needs_vae, needs_text)


def needed_jobs(
    cache: Cache, config: Config, train: VideoDataset, held_out: VideoDataset | None
) -> Iterator[tuple[Sample, ReadJob]]:
    """Every clip that a run asks for; a held-out one has one start, the same at every evaluation."""
    yield from cache.jobs(train, config.train_args.seed, config.train_args.cache_views)
    if held_out is not None:
        yield from cache.jobs(held_out, seed=0, for_evaluation=True)


def needed_captions(train: VideoDataset, held_out: VideoDataset | None, previews: Sequence[Prompt]) -> list[str]:
    """Whatever a run will ask the text encoder for, each once."""
    parts = [part.captions_used() for part in (train, held_out) if part is not None]
    return list(dict.fromkeys([*chain(*parts), *(prompt.text for prompt in previews)]))
