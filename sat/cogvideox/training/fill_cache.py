"""The program of `cache_dataset.py`: fill, verify, count or prune the cache of a training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from cogvideox import stopping
from cogvideox.caching.build import Done, fill_contexts, fill_latents, first_frame, prepare_folders
from cogvideox.caching.npz import Mirror, export_npz, find_npz, store
from cogvideox.caching.opening import Cache, open_cache
from cogvideox.caching.options import CacheOptions
from cogvideox.caching.upkeep import compare_imported, describe, find_unneeded, verify
from cogvideox.config.schema import Config
from cogvideox.config.targets import instantiate
from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.dataset import VideoDataset
from cogvideox.data.sample import Sample
from cogvideox.errors import ConfigError, DataError
from cogvideox.log import amount, get_logger
from cogvideox.model.files import check_text_encoder
from cogvideox.model.frozen_parts import place_conditioner, place_vae
from cogvideox.parallel.devices import device_index
from cogvideox.parallel.launch import read_launch
from cogvideox.sampling.jobs import read_previews
from cogvideox.text.conditioner import Conditioner
from cogvideox.training.data_sets import prepare_data
from cogvideox.training.deepspeed_config import read_dtype
from cogvideox.training.from_cache import needed_captions, needed_jobs
from cogvideox.training.preflight import data_section, source_specs
from cogvideox.vae.autoencoder import VideoAutoencoder

_log = get_logger(__name__)
_SHOWN = 20
_COMPARED = 3  # imported clips that are encoded again before any is taken


@dataclass(frozen=True)
class _Run:
    """A configuration with its data and its cache, on one device."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    train: VideoDataset
    held_out: VideoDataset | None
    captions: list[str]
    cache: Cache

    def jobs(self) -> Iterator[tuple[Sample, ReadJob]]:
        return needed_jobs(self.cache, self.config, self.train, self.held_out)


def run_cache_command(config: Config, options: CacheOptions) -> None:
    """Do what the command line says. Raises: UserError; Stopped, with what is kept."""
    run = _open(config)
    if options.stat:
        print(describe(run.cache))
    elif options.prune:
        _prune(run, yes=options.yes)
    elif options.import_from:
        _import(run, Path(options.import_from).expanduser())
    elif options.export_to:
        count = export_npz(run.cache, run.jobs(), _mirror(run, Path(options.export_to).expanduser()))
        _log.info("%d clips written to %s", count, options.export_to)
    elif options.verify:
        _verify(run, options.verify)
    else:
        _fill(run)


def _open(config: Config) -> _Run:
    if config.train_args.cache is None:
        raise ConfigError("args.cache: missing: say in which folder the cache is, e.g. args.cache=cache")
    device = own_device(config.train_args.device)
    dtype = read_dtype(config.deepspeed, device)
    previews = read_previews(config)
    train, held_out = prepare_data(config)
    assert isinstance(train.reader, ClipDecoder)
    cache = open_cache(config, dtype, train.reader)
    return _Run(config, device, dtype, train, held_out, needed_captions(train, held_out, previews), cache)


def own_device(choice: str) -> torch.device:
    """The device of this process among those that a launcher has started. Raises: ConfigError."""
    launch = read_launch(os.environ)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if choice == "cuda" and not count:
        raise ConfigError("args.device: cuda, but no CUDA device is visible; use args.device=cpu or auto")
    if choice == "cpu" or not count:
        return torch.device("cpu")
    local = launch.rank % count if launch.local_rank is None else launch.local_rank
    device = torch.device("cuda", device_index(launch.rank, local, count))
    torch.cuda.set_device(device)
    return device


def _fill(run: _Run) -> None:
    prepare_folders(run.cache)
    launch = read_launch(os.environ)
    try:
        with stopping.deferred():
            missing = run.cache.contexts.missing(run.captions)
            if missing:
                _log.info("%d of %d captions are encoded on %s", len(missing), len(run.captions), run.device)
                fill_contexts(run.cache, missing, _load_text_encoder(run), run.dtype)
            done = _fill_latents(run, launch.rank / launch.world_size)
    except stopping.Stopped as stop:
        raise stop.after("what was finished is in the cache; the same command goes on from there", saved=True) from None
    _say(run.cache, done)


def _fill_latents(run: _Run, share: float) -> Done:
    args, data = run.config.train_args, data_section(run.config)
    total = sum(1 for _ in run.jobs())
    vae = _load_vae(run)
    done, passes = Done(), 0
    while True:  # once more for what another process had and did not finish
        last = fill_latents(
            run.cache,
            run.jobs(),
            vae,
            num_workers=args.num_workers,
            clip_timeout_s=data.clip_timeout_s,
            max_failed_share=data.max_failed_share,
            first=int(share * total),
            show_progress=launch_is_first(),
        )
        done = replace(
            last,
            made=done.made + last.made,
            num_bytes=done.num_bytes + last.num_bytes,
            before=done.before if passes else last.before,
            elsewhere=done.elsewhere - last.made if passes else last.elsewhere,
            seconds=done.seconds + last.seconds,
            encoding_s=done.encoding_s + last.encoding_s,
        )
        passes += 1
        if not (last.made and last.elsewhere):
            return done


def launch_is_first() -> bool:
    """Whether this is the process that shows progress."""
    return read_launch(os.environ).rank == 0


def _load_vae(run: _Run) -> VideoAutoencoder:
    vae: VideoAutoencoder = instantiate(run.config.model.first_stage_config)
    place_vae(vae, run.config.model, run.device, run.dtype)
    return vae


def _load_text_encoder(run: _Run) -> Conditioner:
    check_text_encoder(run.config.model)
    conditioner: Conditioner = instantiate(run.config.model.conditioner_config)
    on_cpu = run.config.train_args.text_encoder_device == "cpu"
    place_conditioner(conditioner, run.config.model, "cpu" if on_cpu else run.device, run.dtype)
    return conditioner


def _say(cache: Cache, done: Done) -> None:
    rate = done.made / done.seconds if done.seconds else 0.0
    idle = 1 - done.encoding_s / done.seconds if done.made else 0.0
    _log.info(
        "%d clips encoded (%s, %.2f clips/s, %.0f %% of the time not encoding), %d were there, %d others have, "
        "%d failed: %s", done.made, amount(done.num_bytes), rate, 100 * idle, done.before, done.elsewhere,
        len(done.failed), cache.root,
    )  # fmt: skip
    for label, reason in list(done.failed.items())[:_SHOWN]:
        _log.warning("no latents of %s: %s", label, reason)


def _verify(run: _Run, count: int) -> None:
    found = verify(run.cache, run.jobs(), _load_vae(run), count)
    compared = found.equal + found.near + len(found.wrong)
    _log.info("%d entries compared: %d equal, %d within rounding", compared, found.equal, found.near)
    if found.wrong:
        raise DataError("\n".join([f"{len(found.wrong)} of {compared} entries are wrong:", *found.wrong[:_SHOWN]]))


def _mirror(run: _Run, folder: Path) -> Mirror:
    args = run.config.train_args
    entries = source_specs([*args.train_data, *args.valid_data], data_section(run.config))
    roots = [Path(entry.path).expanduser().absolute() for entry in entries]
    return Mirror(folder, tuple(root if root.is_dir() else root.parent for root in roots))


def _import(run: _Run, folder: Path) -> None:
    """Take .npz files into the cache, once some of them have been compared with what this VAE makes of their clips."""
    if not folder.is_dir():
        raise ConfigError(f"--import {folder}: is not a folder")
    prepare_folders(run.cache)
    mirror, decoder = _mirror(run, folder), run.cache.latents.decoder
    vae = _load_vae(run)
    for found in islice(find_npz(run.cache, run.jobs(), mirror), _COMPARED):
        compare_imported(run.cache, vae, found.sample, found.job, found.values)
    count = 0
    for found in find_npz(run.cache, run.jobs(), mirror):
        frame = None
        if run.cache.latents.layout.with_first_frame:
            job = decoder.job(found.sample, found.job.bucket, found.job.seed, found.job.epoch)
            frame = first_frame(decoder.read(job).values).clone()
        store(run.cache, found, frame, run.dtype)
        count += 1
    if not count:
        raise DataError(f"{folder} has no .npz file of these clips; the first one would be {_first_name(run, mirror)}")
    _log.info("%d clips taken from %s into %s", count, folder, run.cache.root)


def _first_name(run: _Run, mirror: Mirror) -> Path:
    return mirror.file("latent", next(iter(run.jobs()))[0])


def _prune(run: _Run, *, yes: bool) -> None:
    found = find_unneeded(run.cache, run.jobs(), run.captions)
    print(f"{len(found.files)} entries ({amount(found.num_bytes)}) belong to none of the data sets given")
    if found.files and not yes:
        print(
            "nothing was deleted; with --yes they are. If other data sets share this cache, name them too in "
            "args.train_data: what only they need is among these entries"
        )
    elif yes:
        found.remove()
        print("deleted")
