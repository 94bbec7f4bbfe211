"""What can be known about a run before it starts: `--check`, beyond the configuration itself. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogvideox import commands
from cogvideox.buckets import Buckets
from cogvideox.config.buckets import read_buckets
from cogvideox.config.clip_sizes import ClipSizes, read_sizes
from cogvideox.config.findings import Refusal
from cogvideox.config.schema import Config, DataConfig, data_entries
from cogvideox.data.decode import open_reader
from cogvideox.data.listing import find_samples, held_out_count, trained_and_held_out
from cogvideox.data.report import describe
from cogvideox.data.sample import Sample
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.data.survey import look_here
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import ConfigError
from cogvideox.parallel.devices import has_gpu
from cogvideox.sampling.jobs import read_previews
from cogvideox.training.which_run import choose_run

CHECK_BUDGET_S = 5.0  # for looking at clips that aren't remembered


def check_run(config: Config) -> list[str]:
    """Which run it is, its precision, previews and data, as far as they can be known without loading anything.

    Returns:
        Lines for people: the report on the data.

    Raises:
        ConfigError, CheckpointError, DataError: what training would end with.
    """
    choose_run(config.train_args)
    device = config.train_args.device
    config.deepspeed.check_device(device == "cuda" or (device == "auto" and has_gpu()))
    read_previews(config)
    return check_data(config)


def check_data(config: Config) -> list[str]:
    """Look at the captions and, for a few seconds, at the clips of `train_data` and `valid_data`; what was seen is
    remembered. Returns: the reports' lines. Raises: DataError."""
    args = config.train_args
    lines, train, num_files = _check_folders(config, args.train_data)
    if args.valid_data:
        more, held_out, _ = _check_folders(config, args.valid_data)
        lines += more + describe(trained_and_held_out(train, held_out))
    elif args.eval_split > 0 and num_files is not None:
        held_out_count(num_files, args.eval_split)
    return [*lines, page_command(config)]


def page_command(config: Config) -> str:
    """A line that says how to see the data on a page."""
    words: list[str | Path] = ["--base", *map(Path, config.files), *config.overrides, "--output", "report.html"]
    return f"  to see it on a page: {commands.tool('check_dataset', *words)}"


def _check_folders(
    config: Config, written: list[str | dict[str, Any]]
) -> tuple[list[str], Sequence[Sample], int | None]:
    """The report's lines, the usable samples, and how many files they are of; None where not all were looked at."""
    data = data_section(config)
    reader = open_reader(data.reader, data.scene_cuts)
    samples, report, _ = find_samples(
        source_specs(written, data),
        clip_spec(config),
        reader,
        look=lambda medias: look_here(medias, reader, data.clip_timeout_s, CHECK_BUDGET_S),
        missing_captions=data.missing_captions,
        captions=data.captions,
        max_failed_share=data.max_failed_share,
        cache=config.train_args.cache,
        buckets=buckets_of(config),
    ).listed
    report.check()
    lines = [report.text()]
    if report.num_not_looked_at:
        lines.append("  the next --check goes on from there; training looks at all of them before it loads weights")
    return lines, samples, report.num_samples if report.num_not_looked_at == 0 else None


def data_section(config: Config) -> DataConfig:
    """Section `data`. Raises: ConfigError when it is missing."""
    if config.data is None:
        raise ConfigError("data: section missing; training needs video_size, fps and max_num_frames")
    return config.data


def source_specs(written: list[str | dict[str, Any]], data: DataConfig) -> list[SourceSpec]:
    """The entries of args.train_data or args.valid_data, with what section `data` says for all of them."""
    return [
        SourceSpec(
            path=entry.path,
            layout=entry.layout,
            root=entry.root,
            video_column=entry.video_column or data.video_column,
            caption_column=entry.caption_column or data.caption_column,
            image_column=entry.image_column or data.image_column,
            weight=entry.weight,
            repeats=1.0 if entry.repeats is None else entry.repeats,
            caption_prefix=data.caption_prefix if entry.caption_prefix is None else entry.caption_prefix,
        )
        for entry in data_entries(written)
    ]


def clip_spec(config: Config) -> ClipSpec:
    """What every clip becomes, from section `data`."""
    data = data_section(config)
    return ClipSpec(
        video_size=data.video_size,
        fps=data.fps,
        max_num_frames=data.max_num_frames,
        skip_frms_num=data.skip_frms_num,
        short_clips=data.short_clips,
        random_start=data.random_start,
        frame_stride=data.frame_stride,
        windows=data.windows,
        scene_cuts=data.scene_cuts,
        geometry=clip_sizes(config).geometry,
    )


def clip_sizes(config: Config) -> ClipSizes:
    """What the model takes."""
    model = config.model
    return read_sizes(model.network_config["params"], model.first_stage_config["params"])


def buckets_of(config: Config) -> Buckets | None:
    """The shapes of `data.buckets`; None without."""
    data = data_section(config)
    return None if data.buckets is None else read_buckets(data, clip_sizes(config), Refusal())
