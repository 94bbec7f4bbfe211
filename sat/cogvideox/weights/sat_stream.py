"""Writing SAT's weight file tensor by tensor, so that a conversion or a merge never holds more than one in memory.

How the file itself is written: weights.torch_save.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.weights.atomic import write_text_atomically
from cogvideox.weights.safetensors_stream import Entry, WrittenFile
from cogvideox.weights.sat_folder import LATEST_FILE, STATES_FILE, states_content
from cogvideox.weights.torch_save import stream_torch_file


def write_sat_folder(
    partial: Path,
    iteration: int,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    extra: Mapping[str, Any],
) -> None:
    """Fill a temporary folder (`atomic.new_folder`) with one iteration, and `latest` that names it.

    Arguments and errors as `stream_states`.
    """
    folder = partial / str(iteration)
    folder.mkdir()
    stream_states(folder, iteration, entries, tensors, extra)
    write_text_atomically(partial / LATEST_FILE, folder.name)


def stream_states(
    partial: Path,
    iteration: int,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    extra: Mapping[str, Any],
) -> WrittenFile:
    """Write `mp_rank_00_model_states.pt` into a temporary iteration folder (`sat_folder.begin_iteration`).

    Args:
        entries: every tensor under its stored name, in the order in which `tensors` gives them.
        tensors: names and values; each is cast to its entry's dtype and dropped after it is written.
        extra: "lora" and "base" of the entry "cogvideox".

    Raises: CheckpointError for a value that is not finite (or not in the entry's dtype), or a full disk.
    """
    content = states_content(iteration, {entry.name: entry for entry in entries}, extra)
    return stream_torch_file(partial / STATES_FILE, content, entries, tensors)
