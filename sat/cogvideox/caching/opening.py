"""The cache of a training: which entries it needs, and which of them are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cogvideox import commands
from cogvideox.caching.contexts import ContextStore
from cogvideox.caching.keys import Recipe
from cogvideox.caching.latent_reader import LatentReader, failure_of
from cogvideox.caching.layout import LatentLayout, views_of
from cogvideox.caching.media_hashes import MediaHashes
from cogvideox.caching.recipes import context_recipe, latent_recipe
from cogvideox.config.clip_sizes import latent_channels
from cogvideox.config.schema import Config
from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.dataset import VideoDataset
from cogvideox.data.sample import Sample
from cogvideox.errors import DataError
from cogvideox.log import get_logger
from cogvideox.model.frozen_parts import context_sizes, geometry_of

_log = get_logger(__name__)
RECIPE_FILE = "recipe.json"
_SHOWN = 3


@dataclass(frozen=True)
class Cache:
    """Stored latents and contexts of one configuration."""

    latents: LatentReader
    contexts: ContextStore

    @property
    def root(self) -> str:
        return self.latents.root

    @property
    def recipes(self) -> tuple[Recipe, Recipe]:
        return self.latents.recipe, self.contexts.recipe

    def on(self, dataset: VideoDataset, views: int | None = None) -> VideoDataset:
        """The same samples, read from here.

        views: draws of each clip's start and bucket that are stored; epoch n meets view n modulo views. None: one
        start, and every bucket that the clip may be drawn for.
        """
        return replace(dataset, reader=replace(self.latents, views=views or 1), views=views)

    def jobs(
        self, dataset: VideoDataset, seed: int, views: int | None = None, *, for_evaluation: bool = False
    ) -> Iterator[tuple[Sample, ReadJob]]:
        """Every clip that training on a data set asks for, or an evaluation. views: as in `on`."""
        reader = replace(self.latents, views=views or 1)
        each = views_of(
            dataset.plan, dataset.sample_ids(), seed=seed, views=views, varies=reader.decoder.spec.varies,
            for_evaluation=for_evaluation,
        )  # fmt: skip
        for sample, wanted in zip(dataset.samples, each, strict=True):
            for bucket, view in wanted:
                yield sample, reader.job(sample, bucket, seed, view)


def open_cache(config: Config, dtype: torch.dtype, decoder: ClipDecoder) -> Cache:
    """The cache that `args.cache` names; nothing is read but the weights' bytes, for their hashes, and those once.

    Args:
        dtype: that VAE and text encoder run in.
        decoder: of the run's clips.

    Raises: ConfigError, CheckpointError, DataError.
    """
    args, model = config.train_args, config.model
    assert args.cache is not None, "args.cache is not set"
    root = str(Path(args.cache).expanduser())
    hashes = MediaHashes(root)
    with_image = model.noised_image_input
    recipe = latent_recipe(model, dtype, args.cache_dtype, with_first_frame=with_image, hashes=hashes)
    latents = LatentReader(
        root, recipe, decoder, LatentLayout(geometry_of(model), latent_channels(model.first_stage_config), with_image),
        online=args.cache_missing == "online",
        how_to_fill=f"fill the cache with: {commands.cache([*config.files, *config.overrides])}",
    )  # fmt: skip
    sizes = context_sizes(model)
    contexts = ContextStore(root, context_recipe(model, dtype, hashes), (sizes.max_length, sizes.width))
    return Cache(latents, contexts)


def check_cache(cache: Cache, jobs: Iterator[tuple[Sample, ReadJob]], captions: Sequence[str]) -> None:
    """Say what the cache holds of a run's clips and captions.

    captions: of the clips. Raises: DataError where something is missing that nothing else may give.
    """
    latents = cache.latents
    there, total, missing = stored(latents.recipe, latents.root), 0, list[str]()
    for sample, job in jobs:
        total += 1
        place = latents.place(job)
        if place.key not in there and failure_of(place) is None:
            missing.append(sample.label)
    untold = cache.contexts.missing(captions)
    _log.info(
        "cache %s: latents of %d of %d clips, contexts of %d of %d captions", cache.root, total - len(missing), total,
        len(captions) - len(untold), len(captions),
    )  # fmt: skip
    if latents.online or not (missing or untold):
        return
    what = [f"the latents of {len(missing)} of {total} clips ({_some(missing)})"] if missing else []
    what += [f"the contexts of {len(untold)} of {len(captions)} captions ({_some(untold)})"] if untold else []
    others = "".join(_others(recipe, cache.root) for recipe in cache.recipes)
    raise DataError(
        f"the cache {cache.root} lacks {' and '.join(what)}{others}; {latents.how_to_fill}; or "
        "args.cache_missing=online encodes in training what is missing"
    )


def stored(recipe: Recipe, root: str) -> set[str]:
    """Keys of the entries that are there."""
    return {file.stem for file in recipe.folder(root).glob("*/*.safetensors")}


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _others(recipe: Recipe, root: str) -> str:
    """Whether there are entries that were made in another way, and what is other. Only where none are of this one."""
    if next(recipe.folder(root).glob("*/*.safetensors"), None) is not None:
        return ""
    for file in sorted(recipe.folder(root).parent.glob(f"*/{RECIPE_FILE}")):
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            theirs, weights = dict(stored["facts"]), str(stored["weights"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        ours = json.loads(recipe.facts)
        other = [name for name in ours if theirs.get(name) != ours[name]]
        if other:
            how = ", ".join(f"{name} {_short(theirs.get(name))} instead of {_short(ours[name])}" for name in other)
            return f"; it has {recipe.kind} made with {weights}, this run's weights are {recipe.weights} ({how})"
    return ""


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
