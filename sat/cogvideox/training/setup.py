"""From a configuration to the parts of a run, in the order that fails early and cheaply.

Process group, then clips and captions, model, weights, engine; the run folder comes last, so that nothing is written by
a run that doesn't start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cogvideox.buckets import micro_batch_size
from cogvideox.config.compare import changed_settings
from cogvideox.config.load import resolved_yaml
from cogvideox.config.schema import Config, TrainArgs
from cogvideox.data.dataset import VideoDataset, build_dataset, split_held_out
from cogvideox.data.listing import long_captions, trained_and_held_out
from cogvideox.data.report import Problem, describe
from cogvideox.errors import ConfigError, DataError
from cogvideox.geometry import Bucket
from cogvideox.log import get_logger
from cogvideox.model.build import draft_model, place_model
from cogvideox.model.files import model_files
from cogvideox.model.loading import base_reference, check_transformer, load_transformer
from cogvideox.model.trainable import TrainableReport, freeze
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.jobs import read_previews
from cogvideox.sampling.prompts import Prompt
from cogvideox.training.captions import settle_text_encoder
from cogvideox.training.checkpoint import Progress, load_progress
from cogvideox.training.deepspeed_config import read_dtype
from cogvideox.training.engine import TrainEngine
from cogvideox.training.from_cache import Stored, look_into_cache, needed_captions
from cogvideox.training.lr_schedules import (
    Schedule,
    build_sat_schedule,
    build_schedule,
    describe_schedule,
)
from cogvideox.training.optimizers import read_optimizer
from cogvideox.training.optional_output import OptionalOutput
from cogvideox.training.preflight import buckets_of, clip_spec, data_section, page_command, source_specs
from cogvideox.training.run_folder import RunLock, check_save_folder, make_run_folder, newest_config, write_config
from cogvideox.training.training_state import state_file
from cogvideox.training.which_run import RunChoice
from cogvideox.weights.file_lock import this_process
from cogvideox.weights.integrity import FileChecks
from cogvideox.weights.runs import record_start

_log = get_logger(__name__)
_WHERE_FROM = ("args.resume", "args.load", "args.base_model")  # no settings of a run that goes on


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
    schedule = make_schedule(args)
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
            groups.first_only(lambda: _name_long_captions(model, train_data, held_out))
        captions = needed_captions(train_data, held_out, previews)
        settle_text_encoder(model, config, captions, dtype, groups, stored.cache)
        groups.attempt(lambda: place_model(model, config.model, groups.device, dtype))
        groups.attempt(lambda: _load(model, source, bases))
        extra = groups.first_only(lambda: _checkpoint_extra(model, trainable, args, source, bases))
        if config.model.lr_scale is not None:
            schedule = _scaled(schedule, config.model.lr_scale)
        engine = TrainEngine(model, config.deepspeed, optimizer, schedule, groups)
        progress = Progress() if choice.resume is None else load_progress(choice.resume, engine, groups)
        groups.attempt(checks.wait)
    if choice.resume is not None and groups.is_first:
        _compare(progress, train_data)
    _announce(config, engine, model, train_data, trainable, schedule, optimizer.lr)
    folder = groups.first_only(lambda: _run_folder(config, choice, progress, lock))
    return Parts(model, engine, train_data, held_out, trainable, progress, folder, extra, previews)


def make_schedule(args: TrainArgs) -> Schedule:
    """The schedule that `args` asks for. Raises: ConfigError."""
    if args.lr_schedule == "sat":
        return build_sat_schedule(args.train_iters, args.warmup, args.lr_decay_style, args.lr_decay_ratio, args.mode)
    return build_schedule(args.lr_schedule, args.train_iters, args.warmup_steps, args.min_lr_ratio)


def _scaled(schedule: Schedule, scale: float) -> Schedule:
    return lambda step: scale * schedule(step)


def files_to_check(
    config: Config,
    source: str | Path | None,
    resumed: Path | None,
    groups: ProcessGroups,
    stored: Stored | None = None,
) -> list[Path]:
    """What this process checks: its own training state, and as the first one of its machine what all of them read.
    stored: a cache may stand in for VAE and text encoder."""
    is_first_here = groups.local_rank == 0
    needed = stored or Stored()
    frozen = {"with_vae": needed.needs_vae, "with_text_encoder": needed.needs_text_encoder}
    found = model_files(config.model, source, **frozen) if is_first_here else []
    if resumed is not None:
        ranks = dict.fromkeys((groups.rank, 0) if is_first_here else (groups.rank,))
        found += [file for rank in ranks if (file := state_file(resumed, rank)).is_file()]
    return found


def _load(model: VideoDiffusion, source: Path | None, bases: Sequence[str]) -> None:
    if source is None:
        _log.warning("args.load is not set: the transformer starts from random weights")
    else:
        load_transformer(model, source, bases=bases)


def _checkpoint_extra(
    model: VideoDiffusion, trainable: TrainableReport, args: TrainArgs, source: Path | None, bases: Sequence[str]
) -> dict[str, Any]:
    """The entries "lora" and "base" of the checkpoints to come (see weights.sat_folder)."""
    if trainable.lora_rank is None:
        return {"lora": None, "base": None}
    mixin = model.transformer.mixins["lora"]  # type: ignore[index, union-attr]
    layers = model.transformer.network.num_layers  # type: ignore[union-attr]
    lora = {"r": mixin.r, "alpha": mixin.lora_alpha, "layers": layers}
    is_whole = args.save_full or trainable.adapter < trainable.trainable or source is None
    return {"lora": lora, "base": None if is_whole else base_reference(source, bases=bases)}  # type: ignore[arg-type]


def prepare_data(config: Config) -> tuple[VideoDataset, VideoDataset | None]:
    """Clips to train on, and those held out: from `valid_data`, else split off when `eval_split` says so. Needs no
    model, so that data is judged before weights are loaded. Raises: DataError."""
    args, data = config.train_args, data_section(config)

    def read(written: list[str | dict[str, Any]]) -> VideoDataset:
        return build_dataset(
            source_specs(written, data),
            clip_spec(config),
            reader=data.reader,
            missing_captions=data.missing_captions,
            captions=data.captions,
            max_failed_share=data.max_failed_share,
            cache=args.cache,
            buckets=buckets_of(config),
            clip_timeout_s=data.clip_timeout_s,
            num_workers=args.num_workers,
            for_image_to_video=config.model.noised_image_input,
        )

    train, held_out = read(args.train_data), None
    if args.valid_data:
        held_out = read(args.valid_data)
        _warn(trained_and_held_out(train.samples, held_out.samples))
    elif args.eval_split > 0:
        train, held_out = split_held_out(train, args.eval_split)
    if held_out is not None:
        held_out = held_out.first(args.eval_samples)
        _log.info("evaluation on %d held-out clips", len(held_out))
    _log.info("data:\n%s", page_command(config))
    return train, held_out


def _name_long_captions(model: VideoDiffusion, train: VideoDataset, held_out: VideoDataset | None) -> None:
    """Only the text encoder's tokenizer knows them, so this comes after the report on the data."""
    samples = [*train.samples, *(held_out.samples if held_out is not None else ())]
    _warn(long_captions(samples, model.conditioner.count_tokens, model.conditioner.max_length))


def _warn(problems: Sequence[Problem]) -> None:
    if problems:
        _log.warning("%s", "\n".join(["data:", *describe(problems)]))


def _compare(progress: Progress, train_data: VideoDataset) -> None:
    """Say what makes a resumed run differ from the run that was saved."""
    if progress.data != train_data.fingerprint():
        _log.warning("the clips are not those of the run that was saved: their order from here on is another")


def _compare_settings(run: Path, config: Config) -> None:
    saved = newest_config(run)
    try:
        changed = {} if saved is None else changed_settings(saved, config.resolved_yaml)
    except ConfigError as error:
        _log.warning("not compared with the settings of the run that is resumed: %s", error)
        return
    texts = [f"{key} {old} -> {new}" for key, (old, new) in changed.items() if key not in _WHERE_FROM]
    if texts:
        _log.warning("resumed with other settings than those of %s: %s", saved, ", ".join(texts))


def check_enough(train: VideoDataset, groups: ProcessGroups) -> None:
    """Every process needs a clip. Raises: DataError."""
    if len(train) < groups.world_size:
        raise DataError(_too_few(groups.world_size, len(train)))


def _too_few(processes: int, clips: int) -> str:
    return (
        f"{processes} processes but only {clips} usable clips to train on: start at most {max(clips, 1)} processes, or "
        "add clips"
    )


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
        _log.info("by data.tokens_per_micro_batch it is %s", ", ".join(texts))
    _log.info("%s", describe_schedule(schedule, peak_lr, total))


def _run_folder(config: Config, choice: RunChoice, progress: Progress, lock: RunLock) -> Path:
    """The folder that the run writes in, locked, with its record and configuration."""
    args, goes_on = config.train_args, choice.folder is not None
    folder = choice.folder if choice.folder is not None else make_run_folder(args.save, args.experiment_name)
    lock.take(folder)
    before = choice.folder if choice.resume is None else choice.resume.parent
    if before is not None:
        _compare_settings(before, config)
    _log.info("run folder %s%s", folder, f" (branched from {choice.branched_from})" if choice.branched_from else "")
    start = (args.experiment_name, progress.step, this_process(), choice.branched_from)
    optional = OptionalOutput()
    optional.write("the run's record", lambda: record_start(folder, *start))
    settled = _with_load(config, choice.load)
    optional.write("the configuration", lambda: write_config(folder, settled, progress.step if goes_on else 0))
    return folder


def _with_load(config: Config, load: Path | None) -> Config:
    """With the checkpoint that `args.load` meant, e.g. of a run folder: another one may be the newest tomorrow."""
    if load is None:
        return config
    args = replace(config.train_args, load=str(load))
    return replace(config, args=args, resolved_yaml=resolved_yaml(args, config.model, config.data, config.deepspeed))


def tokens_per_sample(model: VideoDiffusion, bucket: Bucket) -> int:
    """Text and video tokens that one clip puts through the transformer."""
    network = model.transformer.network  # type: ignore[union-attr]
    return network.text_length + model.geometry.num_video_tokens(*bucket)


def micro_batch_sizes(config: Config, model: VideoDiffusion, buckets: Sequence[Bucket], micro: int) -> list[int]:
    """Clips of each bucket in a micro batch, by data.tokens_per_micro_batch."""
    budget = data_section(config).tokens_per_micro_batch
    return [micro_batch_size(model.geometry.num_video_tokens(*bucket), budget, micro) for bucket in buckets]


def every(interval: int | None, last: int) -> Callable[[int], bool]:
    """Whether something is due after a step: at each multiple of the interval, and after the last step."""
    return lambda step: step == last or (interval is not None and step % interval == 0)
