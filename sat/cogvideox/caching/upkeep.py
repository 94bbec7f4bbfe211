"""What is in a cache: counted, compared with what would be computed now, and cleared of what nothing needs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cogvideox import stopping
from cogvideox.caching.build import encoded
from cogvideox.caching.claims import abandoned
from cogvideox.caching.entries import cannot_write, read_entry
from cogvideox.caching.keys import Recipe
from cogvideox.caching.latent_reader import FAILED
from cogvideox.caching.opening import RECIPE_FILE, Cache, stored
from cogvideox.data.clips import ReadJob
from cogvideox.data.sample import Sample
from cogvideox.errors import DataError
from cogvideox.log import amount
from cogvideox.vae.autoencoder import VideoAutoencoder

# Of the largest value: what another device, or another version of a library, may differ by in 16 bits.
_ROUNDING = 2.0**-6
# The same where another program has decoded and resized the clip, rounding pixels in its own way.
_IMPORTED = 0.1


@dataclass(frozen=True)
class Group:
    """The entries of one recipe."""

    folder: Path
    weights: str
    entries: int
    failed: int
    num_bytes: int


def groups_in(root: str) -> Iterator[Group]:
    """Every recipe of a cache."""
    for folder in sorted(each for each in Path(root).glob("*/*") if each.parent.name in ("latents", "contexts")):
        files = list(folder.glob("*/*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        yield Group(folder, _weights(folder), len(files), len(list(folder.glob(f"*/*{FAILED}"))), size)


def describe(cache: Cache) -> str:
    """Lines for people: every recipe, and which ones this configuration uses."""
    lines, ours = [f"cache {cache.root}"], {recipe.folder(cache.root) for recipe in cache.recipes}
    for group in groups_in(cache.root):
        mark = "this configuration" if group.folder in ours else "another configuration"
        failed = f", {group.failed} clips that can't be read" if group.failed else ""
        lines.append(
            f"  {group.folder.parent.name}/{group.folder.name}: {group.entries} entries, {amount(group.num_bytes)}"
            f"{failed}; made with {group.weights} ({mark})"
        )
    return "\n".join(lines if len(lines) > 1 else [*lines, "  is empty"])


def _weights(folder: Path) -> str:
    try:
        return str(json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return "weights that it doesn't name"


@dataclass(frozen=True)
class Unneeded:
    """Entries of this configuration's recipes that no clip or caption of its data sets has."""

    files: tuple[Path, ...]
    num_bytes: int

    def remove(self) -> None:
        """Delete them. Raises: DataError."""
        for file in self.files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(file, error) from error


def find_unneeded(cache: Cache, jobs: Iterable[tuple[Sample, ReadJob]], captions: Sequence[str]) -> Unneeded:
    """What `--prune` deletes; entries that were made in another way are not looked at. Raises: DataError, Stopped."""
    abandoned(cache.root)
    latents, contexts = cache.latents, cache.contexts
    needed = {contexts.place(caption)[0] for caption in captions}
    for _, job in jobs:
        stopping.check()
        needed.add(latents.place(job).key)
    files = [file for recipe in cache.recipes for file in _files(recipe, cache.root) if file.stem not in needed]
    return Unneeded(tuple(files), sum(file.stat().st_size for file in files))


def _files(recipe: Recipe, root: str) -> Iterator[Path]:
    for pattern in ("*/*.safetensors", f"*/*{FAILED}"):
        yield from sorted(recipe.folder(root).glob(pattern))


@dataclass
class Verified:
    """equal: to the bit; near: within the rounding of 16 bits, as on another device; wrong: what to say of each."""

    equal: int
    near: int
    wrong: list[str]


def verify(cache: Cache, jobs: Iterable[tuple[Sample, ReadJob]], vae: VideoAutoencoder, count: int) -> Verified:
    """Read and compute `count` stored clips, drawn at random, and compare. Raises: Stopped."""
    there = stored(cache.latents.recipe, cache.root)
    known = [(sample, job) for sample, job in jobs if cache.latents.place(job).key in there]
    found = Verified(0, 0, [])
    for sample, job in random.sample(known, min(count, len(known))):
        stopping.check()
        place = cache.latents.place(job)
        try:
            cache.latents.read(job)
            kept = read_entry(place.file, place.key).tensors
            decoder = cache.latents.decoder
            read = decoder.read(decoder.job(sample, job.bucket, job.seed, job.epoch)).values
        except DataError as error:
            found.wrong.append(str(error))
            continue
        now = encoded(cache, vae, read)
        if (
            all(torch.equal(kept[name], value) for name, value in now.items() if name in kept)
            and now.keys() == kept.keys()
        ):
            found.equal += 1
        elif now.keys() == kept.keys() and all(_is_near(kept[name], value) for name, value in now.items()):
            found.near += 1
        else:
            found.wrong.append(f"{place.file}: holds something else than {sample.label} gives now")
    return found


def compare_imported(
    cache: Cache, vae: VideoAutoencoder, sample: Sample, job: ReadJob, values: Mapping[str, Tensor]
) -> None:
    """Compare the moments that another program stored with what this VAE gives. Raises: DataError where they differ by
    more than rounding."""
    decoder = cache.latents.decoder
    now = encoded(cache, vae, decoder.read(decoder.job(sample, job.bucket, job.seed, job.epoch)).values)
    share = float((values["mean"] - now["mean"].float()).abs().max() / now["mean"].float().abs().max())
    # Standard deviations, as they were stored: logarithms of tiny ones say nothing.
    stds = [torch.exp(0.5 * each["log_variance"].float()) for each in (values, now)]
    share = max(share, float((stds[0] - stds[1]).abs().max() / now["mean"].float().abs().max()))
    if not share <= _IMPORTED:
        raise DataError(
            f"{sample.label}: the latents to import differ from this VAE's by {share:.0%} of the largest value: they "
            "are of other frames, another size or another VAE, or multiplied by a scale factor; nothing was imported"
        )


def _is_near(kept: Tensor, now: Tensor) -> bool:
    if kept.shape != now.shape or kept.dtype == torch.uint8:
        return torch.equal(kept, now)
    difference = (kept.float() - now.float()).abs().max()
    return bool(difference <= _ROUNDING * now.float().abs().max())
