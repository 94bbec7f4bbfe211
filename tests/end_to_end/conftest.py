"""One tiny family for all end-to-end tests; they only read it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def settings(family: tiny.TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML of a short LoRA run; tests give another args.save and whatever they are about."""
    folder = tmp_path_factory.mktemp("settings")
    return tiny.write_yaml(folder / "lora.yaml", tiny.train_settings(family, folder / "unused"))


@pytest.fixture
def train(settings: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Train in this process: `train("args.train_iters=2", save="here")` -> summary. Saves below tmp_path."""

    def run(*overrides: str, save: str = "runs") -> dict[str, Any]:
        from cogvideox.config.load import load_config
        from cogvideox.parallel.groups import start_process_groups
        from cogvideox.training.trainer import Trainer

        config = load_config([str(settings)], [f"args.save={tmp_path / save}", *overrides], "train")
        return Trainer(config, start_process_groups("cpu")).fit()

    return run


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The script sends messages to the stderr of its test, which is closed afterwards."""
    logger = logging.getLogger("cogvideox")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
