"""Weights out of a DeepSpeed checkpoint that is split over ranks: ZeRO stages 1, 2 and 3.

    <folder>/<tag>/mp_rank_00_model_states.pt                        stages 1, 2: the module in training precision
    <folder>/<tag>/zero_pp_rank_<n>_mp_rank_00_model_states.pt       stage 3: this rank's share of what is frozen
    <folder>/<tag>/[bf16_]zero_pp_rank_<n>_mp_rank_00_optim_states.pt    this rank's share of the fp32 masters

Trainable parameters are the fp32 masters; what is frozen and the buffers are as stored. Everything is memory-mapped,
and a parameter is put together when it is read. DeepSpeed has a converter of its own (zero_to_fp32); it unpickles
whatever the files ask for and holds the model twice, so the layout is read here, without DeepSpeed, and compared with
its converter in the tests.

Letters: n ranks. A flat vector holds parameters one after the other: in stages 1 and 2 each of the n ranks has an n-th
of the vector of a parameter group, in stage 3 an n-th (rounded up) of every parameter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.user_files import shown, shown_path
from cogvideox.weights.sat_folder import LATEST_FILE, STATES_FILE, read_latest
from cogvideox.weights.torch_file import load_file

_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)_optim_states\.pt")
_MODEL = re.compile(r"zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)_model_states\.pt")
_SLACK = 2  # values per rank that DeepSpeed may add to a flat vector, for alignment


class _Dropped:
    """Stands for DeepSpeed's objects while a file is read: nobody needs what they hold."""

    def __setstate__(self, state: object) -> None:
        """The contents are dropped."""


STAND_INS: tuple[Any, ...] = (
    (_Dropped, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Dropped, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Dropped, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)


@dataclass(frozen=True)
class ZeroCheckpoint(Mapping[str, Tensor]):
    """A whole module, put together from the shards of all ranks on access; names as stored."""

    folder: Path
    files: tuple[Path, ...]
    stage: int
    num_ranks: int
    iteration: int
    extra: dict[str, Any]  # the entry "cogvideox", {} in files that we did not write
    shapes: dict[str, tuple[torch.Size, torch.dtype]]
    readers: dict[str, Callable[[], Tensor]]

    def __getitem__(self, name: str) -> Tensor:
        return self.readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


@dataclass(frozen=True)
class _Flat:
    """One rank's (or all ranks') flat vector, in the pieces in which it is stored."""

    pieces: Sequence[Tensor]

    @property
    def numel(self) -> int:
        return sum(piece.numel() for piece in self.pieces)

    def read(self, start: int, count: int) -> Tensor:
        """Values [start, start + count), copied only where they lie in several pieces."""
        found = []
        for piece in self.pieces:
            if start < piece.numel() and count > 0:
                found.append(piece[start : start + count])
                count -= len(found[-1])
            start = max(start - piece.numel(), 0)
        return found[0] if len(found) == 1 else torch.cat(found)


def read_zero(path: str | Path, tag: str | None = None) -> ZeroCheckpoint:
    """Open the shards of a checkpoint: a folder with `latest`, or the tag's folder itself.

    Raises: CheckpointError for missing or surplus ranks, shards of different saves, damaged files, what is not ZeRO.
    """
    folder = _find_folder(Path(os.path.expanduser(path)), tag)
    files = _rank_files(folder, _OPTIMIZER)
    if not files:
        names = ", ".join(sorted(file.name for file in folder.iterdir())[:4]) or "nothing"
        raise CheckpointError(f"{folder} holds no ZeRO shards (zero_pp_rank_*_optim_states.pt); it holds: {names}")
    shards = [_load(file, "optimizer_state_dict") for file in files]
    stage = _agreed(files, [_stage(shard) for shard in shards], "ZeRO stage")
    if not 1 <= stage <= 3:
        raise CheckpointError(f"{files[0]} is of ZeRO stage {stage}; valid are 1, 2 and 3")
    num_ranks = _agreed(files, [_partition_count(shard) for shard in shards], "number of ranks")
    _check_ranks(files, num_ranks)
    models = _rank_files(folder, _MODEL) if stage == 3 else [folder / STATES_FILE]
    if stage == 3:
        _check_ranks(models, num_ranks, folder)
    states = [_load(file, "module") for file in models]
    if "param_shapes" not in states[0]:
        raise CheckpointError(f"{models[0]} names no parameters (param_shapes): it was not saved by DeepSpeed's ZeRO")
    join = _join_stage_3 if stage == 3 else _join_stage_1
    shapes, readers = join(folder, states, shards, num_ranks)
    for name, other in (states[0].get("shared_params") or {}).items():
        if other in readers:
            shapes[name], readers[name] = shapes[other], readers[other]
    return ZeroCheckpoint(
        folder=folder,
        files=(*models, *files),
        stage=stage,
        num_ranks=num_ranks,
        iteration=_iteration(folder, states[0]),
        extra=states[0].get("cogvideox") or {},
        shapes=shapes,
        readers=readers,
    )


_Joined = tuple[dict[str, tuple[torch.Size, torch.dtype]], dict[str, Callable[[], Tensor]]]


def _join_stage_1(
    folder: Path, states: Sequence[Mapping[str, Any]], shards: Sequence[Mapping[str, Any]], num_ranks: int
) -> _Joined:
    """Stages 1 and 2: the module as stored, with its trainable parameters from the masters."""
    module = {name: value for name, value in states[0]["module"].items() if isinstance(value, Tensor)}
    shapes = {name: (value.shape, value.dtype) for name, value in module.items()}
    readers: dict[str, Callable[[], Tensor]] = {name: value.detach for name, value in module.items()}
    groups = [list(shard["single_partition_of_fp32_groups"]) for shard in shards]
    paddings = shards[0].get("param_alignment_paddings")
    if {len(each) for each in groups} != {len(states[0]["param_shapes"])}:
        raise CheckpointError(f"{folder}: its shards have other parameter groups than its module: of different saves")
    for index, params in enumerate(states[0]["param_shapes"]):
        flat = _Flat([each[index] for each in groups])
        gaps = paddings[index] if paddings is not None else [0] * len(params)
        start = 0
        for (name, shape), gap in zip(params.items(), gaps, strict=True):
            shapes[name] = (torch.Size(shape), flat.pieces[0].dtype)
            readers[name] = partial(_read_whole, flat, start, torch.Size(shape))
            start += torch.Size(shape).numel() + gap
        _check_size(folder, flat.numel, start, _SLACK * num_ranks)
    return shapes, readers


def _join_stage_3(
    folder: Path, states: Sequence[Mapping[str, Any]], shards: Sequence[Mapping[str, Any]], num_ranks: int
) -> _Joined:
    """Stage 3: every parameter from all ranks; the stored module holds buffers only."""
    buffers = {name: states[0]["module"][name] for name in states[0]["buffer_names"] if name in states[0]["module"]}
    shapes = {name: (value.shape, value.dtype) for name, value in buffers.items()}
    readers: dict[str, Callable[[], Tensor]] = {name: value.detach for name, value in buffers.items()}
    for name, shape in (states[0].get("frozen_param_shapes") or {}).items():
        fragments = [_Flat([state["frozen_param_fragments"][name].flatten()]) for state in states]
        shapes[name] = (torch.Size(shape), fragments[0].pieces[0].dtype)
        readers[name] = partial(_read_shares, fragments, 0, torch.Size(shape))
    flats = [_Flat([piece.flatten() for piece in shard["fp32_flat_groups"]]) for shard in shards]
    start = 0
    for group in states[0]["param_shapes"]:
        for name, shape in group.items():
            shapes[name] = (torch.Size(shape), flats[0].pieces[0].dtype)
            readers[name] = partial(_read_shares, flats, start, torch.Size(shape))
            start += -(-torch.Size(shape).numel() // num_ranks)
    for flat in flats:
        _check_size(folder, flat.numel, start, 1)
    return shapes, readers


def _read_whole(flat: _Flat, start: int, shape: torch.Size) -> Tensor:
    return flat.read(start, shape.numel()).view(shape)


def _read_shares(flats: Sequence[_Flat], start: int, shape: torch.Size) -> Tensor:
    share = -(-shape.numel() // len(flats))
    return torch.cat([flat.read(start, share) for flat in flats])[: shape.numel()].view(shape)


def _find_folder(path: Path, tag: str | None) -> Path:
    if not os.path.isdir(path):
        raise CheckpointError(f"no folder with ZeRO shards at {shown_path(path)}")
    if tag is None and (path / LATEST_FILE).is_file():
        tag = read_latest(path)
    if tag is not None and not os.path.isdir(path / tag):
        there = ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir())) or "nothing"
        raise CheckpointError(f"{path} has no folder {shown(tag)}; there: {there}")
    return path / tag if tag is not None else path


def _rank_files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of all ranks, in order of rank. Raises: CheckpointError for model-parallel ones and doubles."""
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = pattern.fullmatch(file.name)
        if match is None:
            continue
        rank = int(match["rank"])
        if int(match["part"]) > 0:
            raise CheckpointError(f"{folder} is split over model-parallel ranks ({file.name}): merge these first")
        if rank in found:
            raise CheckpointError(f"{folder} holds {found[rank].name} and {file.name}: shards of different saves")
        found[rank] = file
    return [found[rank] for rank in sorted(found)]


def _check_ranks(files: Sequence[Path], num_ranks: int, folder: Path | None = None) -> None:
    """Raises: CheckpointError unless there is one file for every rank and no other."""
    ranks = {int(re.search(r"rank_(\d+)", file.name).group(1)) for file in files}  # type: ignore[union-attr]
    absent, surplus = sorted(set(range(num_ranks)) - ranks), sorted(ranks - set(range(num_ranks)))
    where = folder if folder is not None else files[0].parent
    kind = "model" if folder is not None else "optim"
    if absent:
        raise CheckpointError(
            f"{where}: saved by {num_ranks} ranks, and the {kind}_states of rank {', '.join(map(str, absent))} "
            "are not there: copy the shards of all nodes together"
        )
    if surplus:
        raise CheckpointError(
            f"{where}: saved by {num_ranks} ranks, but there are {kind}_states of rank {', '.join(map(str, surplus))}: "
            "shards of another save are among them"
        )


def _load(file: Path, entry: str) -> dict[str, Any]:
    """What a file holds below `entry` (for the module: all of it). Raises: CheckpointError for damage and code."""
    content = load_file(file, STAND_INS)
    if not isinstance(content, Mapping) or not isinstance(content.get(entry), Mapping):
        raise CheckpointError(f"{file} holds no {entry!r}: it was not saved by DeepSpeed")
    return dict(content if entry == "module" else content[entry])


def _stage(shard: Mapping[str, Any]) -> int:
    """As stated. The bf16 optimizer that DeepSpeed takes for fp32 gradients at stage 1 doesn't say; 0 if neither."""
    return int(shard.get("zero_stage", 1 if "single_partition_of_fp32_groups" in shard else 0))


def _partition_count(shard: Mapping[str, Any]) -> int:
    """Ranks that the save was split over; parameter groups may state it one by one."""
    count = shard.get("partition_count", 0)
    return max(count) if isinstance(count, list | tuple) else int(count)


def _agreed(files: Sequence[Path], values: Sequence[int], what: str) -> int:
    for file, value in zip(files, values, strict=True):
        if value != values[0]:
            raise CheckpointError(
                f"{files[0].name} says {what} {values[0]}, {file.name} says {value} (in {file.parent}): "
                "shards of different saves"
            )
    return values[0]


def _check_size(folder: Path, available: int, needed: int, slack: int) -> None:
    if not 0 <= available - needed < max(slack, 1):
        raise CheckpointError(
            f"{folder}: the shards hold {available:,} values where the parameters have {needed:,}: "
            "shards of another save"
        )


def _iteration(folder: Path, state: Mapping[str, Any]) -> int:
    """From the tag (1000, global_step1000), else what DeepSpeed counted."""
    match = re.search(r"\d+$", folder.name)
    return int(match.group()) if match else int(state.get("global_steps", 0))
