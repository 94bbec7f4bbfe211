"""From a configuration to the parts of a run, in the order that fails early and cheaply.

Process group, then clips and captions, model, weights, engine; the run folder comes last, so that nothing is written by
a run that doesn't start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.config.schema import Config
from cogvideox.data.dataset import VideoDataset
from cogvideox.log import get_logger
from cogvideox.model.build import draft_model, place_model
from cogvideox.model.loading import check_transformer
from cogvideox.model.trainable import TrainableReport, freeze
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.jobs import read_previews
from cogvideox.sampling.prompts import Prompt
from cogvideox.training.batch_sizes import micro_batch_sizes
from cogvideox.training.captions import settle_text_encoder
from cogvideox.training.checkpoint import Progress, load_progress
from cogvideox.training.data_sets import check_enough, compare_data, name_long_captions, prepare_data
from cogvideox.training.deepspeed_config import read_dtype
from cogvideox.training.engine import TrainEngine
from cogvideox.training.from_cache import look_into_cache, needed_captions
from cogvideox.training.lr_schedules import Schedule, describe_schedule, make_schedule
from cogvideox.training.optimizers import read_optimizer
from cogvideox.training.run_folder import RunLock, check_save_folder, open_run_folder
from cogvideox.training.starting_weights import checkpoint_extra, files_to_check, load_start
from cogvideox.training.which_run import RunChoice
from cogvideox.weights.integrity import FileChecks

_log = get_logger(__name__)
_BUCKETS_SHOWN = 12


@dataclass(frozen=True)
class Parts:
    """Everything that the loop works with. checkpoint_extra: what checkpoints say beside the weights; previews: what
    is sampled at every evaluation."""

    model: VideoDiffusion
    engine: TrainEngine
    train_data: VideoDataset
    held_out: VideoDataset | None
    trainable: TrainableReport
    progress: Progress
    folder: Path
    checkpoint_extra: dict[str, Any]
    previews: list[Prompt]


def prepare(config: Config, groups: ProcessGroups, choice: RunChoice, lock: RunLock) -> Parts:
    """Check, build, load, and make the run folder.

    choice: what the run starts from; lock: gets the run folder, where one is made. Raises:
        ConfigError, DataError, CheckpointError, ShapeError: on every process.
    """
    args = config.train_args
    dtype = read_dtype(config.deepspeed, groups.device)
    optimizer = read_optimizer(config.deepspeed)
    schedule = make_schedule(args, config.model.lr_scale)
    groups.attempt(lambda: check_save_folder(args.save))
    previews = groups.attempt(lambda: read_previews(config))
    train_data, held_out = groups.first_only(lambda: prepare_data(config))
    check_enough(train_data, groups)
    stored = groups.first_only(lambda: look_into_cache(config, dtype, train_data, held_out, previews))
    train_data = stored.on(train_data, args.cache_views)
    held_out = None if held_out is None else stored.on(held_out)
    source, bases = choice.source, [each for each in (args.base_model, args.load) if each is not None]
    checks = groups.attempt(
        lambda: FileChecks(files_to_check(config, source, choice.resume, groups, stored), verify=args.verify_weights)
    )
    with checks:
        model = groups.attempt(
            lambda: draft_model(
                config.model,
                dtype=dtype,
                seed=args.seed,
                weights_follow=source is not None,
                with_vae=stored.needs_vae,
                with_text_encoder=stored.needs_text_encoder,
            )
        )
        trainable = freeze(model, config.model.not_trainable_prefixes)
        if source is not None:
            groups.attempt(lambda: check_transformer(model, source))
        if stored.needs_text_encoder:
            groups.first_only(lambda: name_long_captions(model, train_data, held_out))
        captions = needed_captions(train_data, held_out, previews)
        settle_text_encoder(model, config, captions, dtype, groups, stored.cache)
        groups.attempt(lambda: place_model(model, config.model, groups.device, dtype))
        groups.attempt(lambda: load_start(model, source, bases))
        extra = groups.first_only(lambda: checkpoint_extra(model, trainable, args, source, bases))
        engine = TrainEngine(model, config.deepspeed, optimizer, schedule, groups)
        progress = Progress() if choice.resume is None else load_progress(choice.resume, engine, groups)
        groups.attempt(checks.wait)
    if choice.resume is not None and groups.is_first:
        compare_data(progress.data, train_data)
    _announce(config, engine, model, train_data, trainable, schedule, optimizer.lr)
    folder = groups.first_only(lambda: open_run_folder(config, choice, progress.step, lock))
    return Parts(model, engine, train_data, held_out, trainable, progress, folder, extra, previews)


def _announce(
    config: Config,
    engine: TrainEngine,
    model: VideoDiffusion,
    train_data: VideoDataset,
    trainable: TrainableReport,
    schedule: Schedule,
    peak_lr: float,
) -> None:
    """What a person checks before the first step."""
    sizes, total = engine.sizes, config.train_args.train_iters
    _log.info("%s", trainable.text())
    _log.info(
        "effective batch %d = %d per process x %d accumulated x %d processes",
        sizes.effective, sizes.micro, sizes.accumulation, sizes.processes,
    )  # fmt: skip
    micro = micro_batch_sizes(config, model, train_data.buckets, sizes.micro)
    if set(micro) != {sizes.micro}:
        others = sizes.accumulation * sizes.processes
        texts = [f"{size * others} of {bucket}" for bucket, size in zip(train_data.buckets, micro, strict=True)]
        more = f", and so on for {len(texts) - _BUCKETS_SHOWN} more" if len(texts) > _BUCKETS_SHOWN else ""
        _log.info("by data.tokens_per_micro_batch it is %s%s", ", ".join(texts[:_BUCKETS_SHOWN]), more)
    _log.info("%s", describe_schedule(schedule, peak_lr, total))
