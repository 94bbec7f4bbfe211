"""From the tree of one section to its dataclass."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

from cogvideox.config.familiar_words import meant
from cogvideox.config.report import Origin, Report, suggestion
from cogvideox.config.schema import NO_EFFECT, DataConfig, DataEntry, Kind, ModelConfig, SampleArgs, TrainArgs
from cogvideox.config.targets import ABSENT, check_component
from cogvideox.config.tree import Node
from cogvideox.config.value_types import TypeMismatch, convert

Section = TypeVar("Section", TrainArgs, SampleArgs, DataConfig)
_ENTRIES = ("train_data", "valid_data")
COMPONENTS = tuple(field.name for field in dataclasses.fields(ModelConfig) if field.name.endswith("_config"))
REQUIRED_COMPONENTS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
)


def field_names(section: type) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


def section_of(key: str, kind: Kind | None) -> str:
    """The section of a run of this kind that has this key; "" for none. None: of either kind."""
    by_kind: dict[Kind | None, list[type]] = {"train": [TrainArgs], "sample": [SampleArgs]}
    args = by_kind.get(kind, [TrainArgs, SampleArgs])
    sections: list[tuple[str, type]] = [
        *(("args", each) for each in args),
        ("data", DataConfig),
        ("model", ModelConfig),
    ]
    return next((name for name, section in sections if key in field_names(section)), "")


def read_section(
    section: type[Section],
    name: str,
    node: Node | None,
    report: Report,
    *,
    elsewhere: Iterable[str] = (),
    partial: bool = False,
) -> Section:
    """Check keys, types and ranges of a flat section. A key that fails keeps its default meanwhile.

    Args:
        name: of the section in YAML.
        elsewhere: keys of the other kind of run. A file may hold them; on the command line they are errors.
        partial: the files are only a part of a configuration, so missing keys are fine.
    """
    values, origins = _typed_values(section, _items(node, section, report), report, frozenset(elsewhere))
    result = section(**values)
    for key, text in result.problems():
        if key in origins and key not in values:
            continue  # its type is wrong, which has been said
        if key in origins:
            report.error(origins[key], text)
        elif not partial:
            path = f"{name}.{key}"
            report.error(report.unfilled.get(path) or _of_section(node, path), text)
    _say_without_effect(name, origins, report)
    return result


def read_model(node: Node | None, report: Report, *, partial: bool = False) -> ModelConfig:
    """Section `model`: flat keys by type, components by signature."""
    items = _items(node, ModelConfig, report)
    flat = {key: child for key, child in items.items() if key not in COMPONENTS}
    values, origins = _typed_values(ModelConfig, flat, report)
    for key in COMPONENTS:
        child = items.get(key)
        if child is not None and partial and isinstance(child.value, dict) and child.child("target") is None:
            values[key] = ABSENT  # an overlay: which class takes these parameters stands in another file
        elif child is not None and child.value is not None:
            values[key] = check_component(child, report) or ABSENT
        elif key in REQUIRED_COMPONENTS:
            values[key] = ABSENT
            if not partial:
                text = "missing: start from a model file such as configs/cogvideox_2b.yaml"
                report.error(_of_section(node, f"model.{key}"), text)
    model = ModelConfig(**values)
    for key, text in model.problems():
        report.error(origins[key], text)  # every default is in range
    _say_without_effect("model", origins, report)
    return model


def _typed_values(
    section: type, items: dict[str, Node], report: Report, elsewhere: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], dict[str, Origin]]:
    known = field_names(section)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for key, child in items.items():
        origins[key] = child.origin
        if key in known:
            try:
                if section is TrainArgs and key in _ENTRIES:
                    entries = _read_entries(child, report)
                    if entries or not child.value:
                        values[key] = entries
                    continue
                values[key] = convert(child.plain(), _annotations(section)[key])
            except TypeMismatch as error:
                report.error(child.origin, str(error))
        elif key not in elsewhere:
            owner = section_of(key, report.kind)
            if owner:
                report.error(child.origin, f"belongs to section {owner}: write {owner}.{key}")
            else:
                report.unknown(child.origin, key, [*known, *elsewhere])
        elif child.origin.file is None:
            hint = meant(key, report.kind)
            text = "belongs to the other kind of run (training or sampling): no effect here"
            report.error(child.origin, f"{text}; {hint}" if hint else text)
    return values, origins


def _read_entries(node: Node, report: Report) -> list[Any]:
    """The entries of a list of data, mappings checked key by key. An entry that fails is left out meanwhile.

    Raises:
        TypeMismatch: no list of paths and mappings.
    """
    written = convert(node.plain(), _annotations(TrainArgs)["train_data"])
    entries: list[Any] = []
    for item, plain in zip(node.value, written, strict=True):
        if not isinstance(item.value, dict):
            entries.append(plain)
            continue
        values: dict[str, Any] = {}
        is_right = True
        for key, child in item.value.items():
            if key not in field_names(DataEntry):
                is_right = False
                report.error(child.origin, f"unknown key {key!r}; {suggestion(key, field_names(DataEntry))}")
                continue
            try:
                values[key] = convert(child.plain(), _annotations(DataEntry)[key])
            except TypeMismatch as error:
                is_right = False
                report.error(child.origin, str(error))
        if is_right:
            for key, text in DataEntry(**values).problems():
                if key in item.value:
                    report.error(item.value[key].origin, text)
                else:
                    report.error(item.origin, f"{key}: {text}")
                is_right = False
        entries += [values] if is_right else []
    return entries


def _say_without_effect(name: str, given: Iterable[str], report: Report) -> None:
    found = [key for key in given if key in NO_EFFECT.get(name, ())]
    if found:
        report.notice(f"{name}: accepted without effect: {', '.join(found)}")


def _items(node: Node | None, section: type, report: Report) -> dict[str, Node]:
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        report.error(node.origin, f"must be a mapping of keys such as {', '.join(field_names(section)[:4])}")
        return {}
    return node.value


def _of_section(node: Node | None, path: str) -> Origin:
    """Where a key is missing: the section's file when there is one."""
    if node is None:
        return Origin("", None, path)
    return dataclasses.replace(node.origin, line=None, path=path)


@cache
def _annotations(section: type) -> dict[str, ast.expr]:
    return {field.name: ast.parse(str(field.type), mode="eval").body for field in dataclasses.fields(section)}
