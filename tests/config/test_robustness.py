"""Whatever stands where in a file: the answer is a configuration or a ConfigError, never another exception."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cogvideox.config.load import load_config
from cogvideox.errors import ConfigError
from config.conftest import MODEL, PUBLISHED, SFT

GARBAGE: list[Any] = [None, 0, -1, 1.5, "x", True, [], [1], {}, {"a": 1}, {"target": 3}, {"target": "x.Y", "params": 3}]
CASES_PER_FILE = 15


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from paths(child, (*path, key))


FILES = [PUBLISHED / name for name in ("cogvideox_2b_lora.yaml", "cogvideox1.5_5b_i2v.yaml", "sft.yaml")] + [Path(SFT)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_garbage_anywhere(file: Path, tmp_path: Path) -> None:
    whole = yaml.safe_load(file.read_text())
    places = list(paths(whole))
    rng = random.Random(str(file.name))
    for case in range(CASES_PER_FILE):
        changed = copy.deepcopy(whole)
        *parents, last = rng.choice(places)
        inner = changed
        for key in parents:
            inner = inner[key]
        inner[last] = rng.choice(GARBAGE)
        target = tmp_path / f"{case}.yaml"
        target.write_text(yaml.safe_dump(changed))
        base = [MODEL, str(target)] if "sft" in file.name else [str(target), str(PUBLISHED / "sft.yaml")]
        try:
            load_config(base, ["args.train_data=[x]"], "train")
        except ConfigError as error:
            assert str(error)
