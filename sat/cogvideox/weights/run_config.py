"""The configuration that a run leaves beside its checkpoints.

<run>/training_config.yaml                   from the start
<run>/training_config-resumed-at-<n>.yaml    from iteration n on, when the run was resumed there
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"training_config(?:-resumed-at-(\d+))?\.yaml")
_ITERATION = re.compile(r"(?:global_step)?(\d+)(?:-.*)?")  # 1000, 1000-ema, and DeepSpeed's own tag


def run_config_name(iteration: int = 0) -> str:
    """The file's name for a run that starts, or is resumed, at this iteration."""
    return f"training_config-resumed-at-{iteration}.yaml" if iteration else "training_config.yaml"


def trained_config(states_file: Path) -> Path | None:
    """The configuration in force when a run wrote this checkpoint; None for weights outside of a run folder.

    A run that was resumed at iteration n left another one, for the checkpoints behind n.
    """
    for file in dict.fromkeys((states_file.absolute(), states_file.resolve())):
        for folder in (file.parent, file.parent.parent):
            starts = {
                int(match[1] or 0): each
                for each in folder.glob("training_config*.yaml")
                if (match := _NAME.fullmatch(each.name))
            }
            saved_at = _ITERATION.fullmatch(file.parent.name) if folder != file.parent else None
            in_force = [start for start in starts if saved_at is None or start == 0 or start < int(saved_at[1])]
            if in_force:
                return starts[max(in_force)]
    return None
