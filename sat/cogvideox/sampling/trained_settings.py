"""Whether sampling computes as training did: weights don't say scale factors, the noise schedule or positions."""

from __future__ import annotations

import os
from pathlib import Path

from cogvideox.config.compare import changed_computation
from cogvideox.config.load import read_trained_model
from cogvideox.config.schema import ModelConfig
from cogvideox.errors import ConfigError
from cogvideox.log import get_logger
from cogvideox.weights.run_config import trained_config
from cogvideox.weights.sat_folder import find_states_file

_log = get_logger(__name__)


def warn_of_changes(config: ModelConfig, load: str | Path) -> None:
    """Say once which settings differ from those in the run folder that the weights lie in; nothing without one.

    Raises: CheckpointError when there are no weights.
    """
    file = trained_config(find_states_file(load))
    if file is None or os.environ.get("RANK", "0") != "0":
        return
    try:
        changed = changed_computation(read_trained_model(file), config)
    except ConfigError as error:
        _log.warning("not compared with the settings of training, %s can't be read: %s", file, error)
        return
    texts = [f"{key} trained with {before}, sampling with {now}" for key, (before, now) in changed.items()]
    if texts:
        _log.warning("these weights were trained with other settings (%s): %s", file, "; ".join(texts))
