"""The clips that a run trains on and those that it is judged by, read and compared before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cogvideox.config.schema import Config
from cogvideox.data.dataset import VideoDataset, build_dataset, split_held_out
from cogvideox.data.listing import long_captions, trained_and_held_out
from cogvideox.data.report import Problem, describe
from cogvideox.errors import DataError
from cogvideox.log import get_logger
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.training.preflight import buckets_of, clip_spec, data_section, page_command, source_specs

_log = get_logger(__name__)


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


def check_enough(train: VideoDataset, groups: ProcessGroups) -> None:
    """Every process needs a clip. Raises: DataError."""
    if len(train) < groups.world_size:
        raise DataError(
            f"{groups.world_size} processes but only {len(train)} usable clips to train on: start at most "
            f"{max(len(train), 1)} processes, or add clips"
        )


def name_long_captions(model: VideoDiffusion, train: VideoDataset, held_out: VideoDataset | None) -> None:
    """Warn of captions that are cut. Only the text encoder's tokenizer knows them, so this comes after the report."""
    samples = [*train.samples, *(held_out.samples if held_out is not None else ())]
    _warn(long_captions(samples, model.conditioner.count_tokens, model.conditioner.max_length))


def compare_data(saved: str, train: VideoDataset) -> None:
    """Say whether a run that goes on has other clips. saved: the fingerprint of those that it had."""
    if saved != train.fingerprint():
        _log.warning("the clips are not those of the run that was saved: their order from here on is another")


def _warn(problems: Sequence[Problem]) -> None:
    if problems:
        _log.warning("%s", "\n".join(["data:", *describe(problems)]))
