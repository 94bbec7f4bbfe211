"""A complete little configuration as YAML files, and a way to load it with changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config, Kind

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "configs/cogvideox_2b_lora.yaml")
SFT = str(ROOT / "configs/sft.yaml")
INFERENCE = str(ROOT / "configs/inference.yaml")
PUBLISHED = Path(__file__).resolve().parent / "published"

Load = Callable[..., Config]


@pytest.fixture
def train() -> Load:
    """Load the shipped 2B LoRA training configuration with overrides."""

    def load(*overrides: str, more: list[str] | None = None, allow_unknown: bool = False) -> Config:
        base = [MODEL, SFT, *(more or [])]
        return load_config(base, ["args.train_data=[clips]", *overrides], "train", allow_unknown)

    return load


@pytest.fixture
def sample() -> Load:
    """Load the shipped sampling configuration with overrides."""

    def load(*overrides: str, more: list[str] | None = None) -> Config:
        return load_config([MODEL, INFERENCE, *(more or [])], list(overrides), "sample")

    return load


@pytest.fixture
def published() -> Callable[..., Config]:
    """Load published files, each after a textual replacement."""

    def load(kind: Kind, *files: str, overrides: tuple[str, ...] = ()) -> Config:
        return load_config([str(PUBLISHED / file) for file in files], list(overrides), kind)

    return load
