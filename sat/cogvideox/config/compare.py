"""What changed between two configurations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf


def changed_settings(before: str, after: str) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value before, value after) wherever two resolved YAML texts differ; None where there is none."""
    old, new = (dict(_flat(OmegaConf.to_container(OmegaConf.create(text)))) for text in (before, after))
    keys = dict.fromkeys([*old, *new])
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings; a list is a leaf."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _flat(child, f"{path}.{key}".lstrip("."))
    else:
        yield path, value
