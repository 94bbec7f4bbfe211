"""Where the text encoder of a training run is, and who encodes which captions."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from cogvideox import stopping
from cogvideox.caching.contexts import ContextStore
from cogvideox.caching.opening import Cache
from cogvideox.config.schema import Config
from cogvideox.errors import DataError
from cogvideox.log import amount, get_logger
from cogvideox.model.build import place_text_encoder
from cogvideox.model.encode_captions import context_shape, encode_each, give_up_encoder
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.text.contexts import ContextFile, no_temporary_file

_log = get_logger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # hosts made from one image may have one name


def settle_text_encoder(
    model: VideoDiffusion,
    config: Config,
    captions: Sequence[str],
    dtype: torch.dtype,
    groups: ProcessGroups,
    cache: Cache | None = None,
) -> None:
    """Do what `args.text_encoder_device` says. All processes call it, before the transformer gets its memory.

    auto: all captions are encoded now, on the device, and the encoder ends. cpu: it stays on the CPU, and encodes each
    caption when it first comes. device: it stays on the device, and nothing is remembered.
    model: a draft (see model.build); captions: all that the run will ask for, the same ones on every process. cache:
    holds contexts of some or all of them; without the others the model needs no encoder.
    Raises: CheckpointError, DataError, Stopped: on every process.
    """
    choice = config.train_args.text_encoder_device
    encoder_device = torch.device("cpu") if choice == "cpu" else groups.device
    if choice == "device" and cache is None:
        groups.attempt(lambda: place_text_encoder(model, config.model, encoder_device, dtype))
        return
    distinct = list(dict.fromkeys(captions))
    contexts, mine = _share(distinct, context_shape(model.conditioner), dtype, groups)
    model.conditioner.remember(contexts)
    size, folder = amount(contexts.num_bytes), tempfile.gettempdir()
    if cache is not None:
        store, share = cache.contexts, mine
        mine = groups.attempt(lambda: _fill_from(store, contexts, share))
        if model.conditioner.encoder is None:
            _log.info("contexts of %d captions come from the cache; %s in %s hold them", len(distinct), size, folder)
            return
    when = "now" if choice == "auto" else "when they first come"
    _log.info(
        "%d different captions are encoded %s, on %s; %s in %s hold them", len(distinct), when, encoder_device,
        size, folder,
    )  # fmt: skip
    if choice != "auto":
        groups.attempt(lambda: place_text_encoder(model, config.model, encoder_device, dtype))
        return

    def encode_mine() -> None:
        if mine:
            place_text_encoder(model, config.model, encoder_device, dtype)
            encode_each(model.conditioner, mine)

    groups.attempt(encode_mine)
    give_up_encoder(model.conditioner)


def _fill_from(store: ContextStore, contexts: ContextFile, captions: Sequence[str]) -> list[str]:
    """Take contexts from a cache; those that it lacks. Raises: DataError for a damaged entry, Stopped."""
    lacking = store.missing(captions)
    for caption in dict.fromkeys(captions).keys() - set(lacking):
        stopping.check()
        contexts.fill(caption, partial(store.read, caption))
    return lacking


def _share(
    captions: Sequence[str], shape: tuple[int, int], dtype: torch.dtype, groups: ProcessGroups
) -> tuple[ContextFile, Sequence[str]]:
    """One file of contexts for the processes that see the same temporary folder, and the captions of which this process
    is the one to encode. The file has lost its name before anything is written: it ends with the last process, however
    that ends."""
    places = groups.gather_objects(groups.attempt(_temporary_folder))
    together = [rank for rank, place in enumerate(places) if place == places[groups.rank]]
    is_leader = together[0] == groups.rank
    with ExitStack() as named:
        name = groups.attempt(lambda: _make_file(named) if is_leader else "")
        names = groups.gather_objects(name)
        contexts = groups.attempt(lambda: _open(names[together[0]], captions, shape, dtype))
    groups.attempt(contexts.reserve if is_leader else _nothing)
    return contexts, captions[together.index(groups.rank) :: len(together)]


def _temporary_folder() -> tuple[str, str, int, int]:
    """The same for two processes that find the same temporary folder of the same machine under one name."""
    boot = _BOOT_ID.read_text() if _BOOT_ID.exists() else socket.gethostname()
    try:
        folder = tempfile.gettempdir()  # OSError where none can be written
        status = os.stat(folder)
    except OSError as error:
        raise DataError(no_temporary_file(error)) from error
    return boot, folder, status.st_dev, status.st_ino


def _make_file(named: ExitStack) -> str:
    """An empty file that has a name for as long as `named` is open."""
    try:
        return named.enter_context(tempfile.NamedTemporaryFile(prefix="cogvideox-contexts-")).name
    except OSError as error:
        raise DataError(no_temporary_file(error)) from error


def _open(name: str, captions: Sequence[str], shape: tuple[int, int], dtype: torch.dtype) -> ContextFile:
    try:
        return ContextFile(Path(name).open("r+b"), captions, shape, dtype)
    except OSError as error:
        raise DataError(no_temporary_file(error)) from error


def _nothing() -> None:
    return None
