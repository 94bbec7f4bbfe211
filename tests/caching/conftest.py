"""Tiny families with clips, and their caches, filled in this process."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from cogvideox.caching.options import CacheOptions
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config

# A convolution over two clips may sum in another order than over one; caches hold clips that were encoded alone.
ONE_BY_ONE = "model.en_and_decode_n_samples_a_time=1"
NO_TRANSFORMER = ("args.mode=pretrain", "args.load=null")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips; nothing may be written there."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    tiny.write_clips(folder, 6)
    return folder


@pytest.fixture(scope="session")
def settings_of(
    family_of: tiny.FamilyOf, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """YAML of a short LoRA run of a family."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(f"settings-{name}")
            tree = tiny.train_settings(family_of(name), folder / "unused", name)
            tree["args"]["train_data"] = [str(clips)]
            made[name] = tiny.write_yaml(folder / "lora.yaml", tree)
        return made[name]

    return get


@pytest.fixture
def configure(settings_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., Config]:
    """`configure("2b", "args.train_iters=2")`; the cache is `<tmp_path>/cache` unless another is named."""

    def get(family: str, *overrides: str) -> Config:
        words = [f"args.cache={tmp_path / 'cache'}", f"args.save={tmp_path / 'runs'}", ONE_BY_ONE, *overrides]
        return load_config([str(settings_of(family))], words, "train")

    return get


@pytest.fixture
def fill(configure: Callable[..., Config]) -> Callable[..., None]:
    """What cache_dataset.py does."""

    def run(family: str, *overrides: str, **options: Any) -> None:
        from cogvideox.training.fill_cache import run_cache_command

        run_cache_command(configure(family, *overrides, *NO_TRANSFORMER), CacheOptions(**options))

    return run


@pytest.fixture(scope="session")
def full_cache(settings_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The cache of a family's six clips and captions, filled once; nothing may be written there."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        from cogvideox.training.fill_cache import run_cache_command

        if name not in made:
            cache = tmp_path_factory.mktemp(f"full-{name}") / "cache"
            words = [f"args.cache={cache}", ONE_BY_ONE, *NO_TRANSFORMER]
            run_cache_command(load_config([str(settings_of(name))], words, "train"), CacheOptions())
            made[name] = cache
        return made[name]

    return get


@pytest.fixture
def filled(full_cache: Callable[[str], Path], tmp_path: Path) -> Callable[[str], None]:
    """Make `<tmp_path>/cache` what `fill(family)` makes it; a copy."""

    def copy(name: str) -> None:
        shutil.copytree(full_cache(name), tmp_path / "cache")

    return copy


@pytest.fixture
def train(configure: Callable[..., Config]) -> Callable[..., list[float]]:
    """Train in this process; the losses of all steps, and of evaluations behind them."""

    def run(family: str, *overrides: str) -> list[float]:
        from cogvideox.parallel.groups import start_process_groups
        from cogvideox.training.trainer import Trainer

        summary = Trainer(configure(family, *overrides), start_process_groups("cpu")).fit()
        lines = tiny.read_lines(Path(summary["run_folder"]))
        return [line["train_loss"] for line in lines if "train_loss" in line] + [
            loss for _, loss in summary["valid_loss"]
        ]

    return run


@pytest.fixture
def entries(tmp_path: Path) -> Callable[[str], list[Path]]:
    """The entries of a kind in the cache of this test."""
    return lambda kind: sorted((tmp_path / "cache" / kind).glob("*/*/*.safetensors"))


@pytest.fixture(autouse=True)
def _messages() -> Iterator[None]:
    """Where caplog finds them."""
    logger = logging.getLogger("cogvideox")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    logger.propagate = True
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
