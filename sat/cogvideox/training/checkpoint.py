"""Saving a run so that it can be sampled from, exported and continued, and continuing it.

A checkpoint is one folder, whole or absent: weights in SAT's layout, and beside them `training_state/` with what each
process needs to go on. Order of a save: everything into a temporary folder, sync, rename, `latest`; older ones go
last.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cogvideox.data.plans import StreamPosition
from cogvideox.errors import CheckpointError
from cogvideox.log import get_logger
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.training.engine import TrainEngine
from cogvideox.training.training_state import TrainingState, read_state, write_state
from cogvideox.weights.atomic import abandon_folder, remove_folder
from cogvideox.weights.lora_map import is_adapter
from cogvideox.weights.manifest import write_checkpoint_manifest
from cogvideox.weights.runs import whole_iterations
from cogvideox.weights.safetensors_stream import WrittenFile
from cogvideox.weights.sat_folder import begin_iteration, commit_iteration, tensor_bytes, write_states

_log = get_logger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    step: optimizer steps done; position: in the endless stream of samples; data: fingerprint of its clips.
    """

    step: int = 0
    position: StreamPosition = field(default_factory=StreamPosition)
    data: str = ""


class Checkpointer:
    """Writes the checkpoints of one run.

    extra: the "lora" and "base" entries of the weight file (weights.sat_folder). save_full: all weights of the
    transformer, also those that don't train. keep_last: how many checkpoints stay, the new one included.
    """

    def __init__(
        self,
        folder: Path,
        engine: TrainEngine,
        groups: ProcessGroups,
        extra: Mapping[str, Any],
        *,
        save_full: bool = False,
        keep_last: int | None = None,
    ) -> None:
        self._folder, self._engine, self._groups, self._extra = folder, engine, groups, extra
        self._save_full, self._keep_last = save_full, keep_last
        self._said_adapters = False

    def save(self, progress: Progress) -> Path:
        """Write `<folder>/<step>/`; every process takes part and all return, or raise, together.

        Raises:
            CheckpointError: weights are not finite, no space or permission; the previous checkpoint stays.
        """
        weights = saved_weights(self._engine.module, self._save_full)
        processes = self._groups.world_size if self._engine.is_sharded else 1
        position, optimizer = progress.position, self._engine.capture()
        taken = dict(position.taken)
        state = TrainingState(progress.step, position.total, progress.data, processes, optimizer, taken)
        needed = tensor_bytes(weights) + _bytes(state.optimizer) * processes
        partial, final = self._groups.first_only(lambda: self._begin(progress.step, needed))
        try:
            own = self._groups.attempt(lambda: self._write(partial, weights, state, needed))
            files = [file for written in self._groups.gather_objects(own) for file in written]
            self._groups.first_only(lambda: _commit(partial, final, progress.step, files, needed))
        except BaseException:
            if self._groups.is_first:
                abandon_folder(partial)
            raise
        self._groups.first_only(lambda: self._remove_old(progress.step))
        if self._groups.is_first:
            self._say(final, weights)
        return final

    def _begin(self, step: int, needed: int) -> tuple[Path, Path]:
        """A run goes on from its newest checkpoint: this one replaces no other, but maybe a folder without weights."""
        return begin_iteration(self._folder, step, needed, overwrite=step not in whole_iterations(self._folder))

    def _say(self, final: Path, weights: Mapping[str, Tensor]) -> None:
        """Where the checkpoint is; once, what a file of adapters is not."""
        _log.info("saved %s", final)
        if not self._said_adapters and all(map(is_adapter, weights)):
            self._said_adapters = True
            _log.info(
                "checkpoints hold the adapters only, for this program; for the original one: python "
                "tools/export_original.py %s --output_path for_original",
                shlex.quote(str(self._folder)),
            )

    def _write(
        self, partial: Path, weights: Mapping[str, Tensor], state: TrainingState, needed: int
    ) -> list[WrittenFile]:
        """This process's files, names relative to the iteration folder. needed: bytes of those of all processes."""
        written = []
        if self._groups.is_first:
            written.append(write_states(partial, state.step, weights, self._extra, needed))
        if self._groups.is_first or self._engine.is_sharded:
            written.append(write_state(partial, self._groups.rank, state, needed))
        return written

    def _remove_old(self, step: int) -> None:
        """Checkpoints before the one of this step, never a later one."""
        if self._keep_last is None:
            return
        until_now = [folder for iteration, folder in whole_iterations(self._folder).items() if iteration <= step]
        for folder in until_now[: -self._keep_last]:
            remove_folder(folder)


def _commit(partial: Path, final: Path, iteration: int, files: list[WrittenFile], needed: int) -> None:
    write_checkpoint_manifest(partial, iteration, files)
    commit_iteration(partial, final, iteration, needed)


def saved_weights(model: nn.Module, save_full: bool) -> dict[str, Tensor]:
    """What goes into the weight file, under stored names.

    LoRA: the adapters. Full fine-tuning, and save_full: the whole transformer with its persistent buffers. So a file
    either needs its base, which it names, or nothing else.
    """
    whole = model.state_dict()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    only_adapters = all(".matrix_A." in name or ".matrix_B." in name for name in trainable)
    if save_full or not only_adapters:
        return whole
    return {name: tensor for name, tensor in whole.items() if name in trainable}


def load_progress(folder: Path, engine: TrainEngine, groups: ProcessGroups) -> Progress:
    """Restore the optimizer from an iteration folder; the weights have been loaded from it already.

    Raises:
        CheckpointError: on every process, when any can't be restored.
    """

    def restore() -> Progress:
        state = _read_state(folder, engine, groups)
        engine.restore(state.optimizer)
        return Progress(state.step, StreamPosition(state.position, state.taken), state.data)

    return groups.attempt(restore)


def _read_state(folder: Path, engine: TrainEngine, groups: ProcessGroups) -> TrainingState:
    first = read_state(folder, 0)
    processes = groups.world_size if engine.is_sharded else 1
    if first.processes != processes:
        raise CheckpointError(
            f"args.resume: {folder} was saved with its optimizer state split over {first.processes} process(es) and "
            f"this run splits it over {processes}: resume with the same number of processes and ZeRO stage, or start a "
            "new run from its weights with args.load"
        )
    return read_state(folder, groups.rank) if processes > 1 else first


def _bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
