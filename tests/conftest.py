"""What tests in several rooms share: tiny families, made when they are first asked for and only read."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny
from hypothesis import settings

if TYPE_CHECKING:
    from tiny_checkpoints import Checkpoints

# The same examples in every run: whether a change passes must not depend on luck.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# `nohup`, and a shell's `&`, leave these ignored, also for the programs that tests start and interrupt.
for _ignored, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_ignored) is signal.SIG_IGN:
        signal.signal(_ignored, _usual)


def pytest_collection_finish() -> None:
    """All libraries are imported by now. What they hold stays for good: Python's garbage collector, which DeepSpeed
    calls a dozen times for each engine, need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Headers of clips are remembered here, and not in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> tiny.FamilyOf:
    """A tiny family without clips, by name."""
    made: dict[str, tiny.TinyFamily] = {}

    def get(name: str) -> tiny.TinyFamily:
        if name not in made:
            with tiny.quiet():
                made[name] = tiny.write_family(tmp_path_factory.mktemp(name), num_clips=0, family=name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """One set of tiny checkpoints of every kind that is converted."""
    import cogvideox.transformer.model  # noqa: F401  SAT's log handler keeps the stderr of its first import
    from tiny_checkpoints import write_checkpoints

    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def exported(family_of: tiny.FamilyOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The diffusers pipeline of a tiny family, its transformer in several shards."""
    from convert_weight_sat2hf import main

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            family, folder = family_of(name), tmp_path_factory.mktemp(f"{name}-hf") / "pipeline"
            inputs = ["--checkpoint", str(family.transformer), "--base", str(family.model_yaml)]
            with tiny.quiet():
                main([*inputs, "--output_path", str(folder), "--max_shard_size", "300KB"])
            made[name] = folder
        return made[name]

    return get
