"""One set of tiny checkpoints for all tests of the tools; they only read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cogvideox.transformer.model  # noqa: F401  SAT's log handler keeps the stderr of its first import
import pytest
import tiny
from tiny_checkpoints import Checkpoints, write_checkpoints

FAMILIES = ("2b", "5b", "5b_i2v", "1.5", "1.5_i2v")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
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
