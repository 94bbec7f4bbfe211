"""YAML as a tree whose every node knows the file, line and key path that it came from.

Later files win key by key, lists are replaced as a whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cogvideox.config.report import Origin, Report
from cogvideox.config.yaml_text import MAX_BYTES, MAX_DEPTH, BadYaml, parse_yaml
from cogvideox.errors import ConfigError
from cogvideox.user_files import cut, read_text, shown, shown_path

MISSING = "???"  # OmegaConf's mark for "must be given by a later file or on the command line"
REPLACE = "replace"  # beside a component's target: nothing of the node in earlier files stays
MAX_INTERPOLATIONS = 24
Path_ = tuple[str | int, ...]


@dataclass
class Node:
    """A scalar, a dict of Nodes or a list of Nodes."""

    value: Any
    origin: Origin

    def child(self, name: str) -> Node | None:
        return self.value.get(name) if isinstance(self.value, dict) else None

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def build(value: Any, origin: Origin, lines: dict[Path_, int] | None = None, path: Path_ = ()) -> Node:
    """Wrap a plain value that stands at `origin`; keys that `lines` does not know keep their parent's line.

    Args:
        path: of the value inside its file, to find its line.
    """

    def inside(key: str | int, child: Any) -> Node:
        here = (*path, key)
        line = (lines or {}).get(here, origin.line)
        return build(child, replace(origin, line=line, path=f"{origin.path}.{key}".lstrip(".")), lines, here)

    if isinstance(value, dict):
        return Node({str(key): inside(str(key), child) for key, child in value.items()}, origin)
    if isinstance(value, list):
        return Node([inside(index, child) for index, child in enumerate(value)], origin)
    return Node(value, origin)


def read_yaml(file: Path, layer: int, report: Report) -> Node | None:
    """One file as a tree; None when it can't be read, which is then in the report."""
    start = Origin(str(file), 1, "", layer)
    if not os.path.exists(file):
        report.error(replace(start, file=shown_path(file), line=None), "can't be read: no such file")
        return None
    try:
        plain, composed = parse_yaml(read_text(file, ConfigError, max_bytes=MAX_BYTES))
    except BadYaml as error:
        report.error(replace(start, line=error.line or 1), str(error))
        return None
    except ConfigError as error:
        report.error(Origin("", None, ""), str(error))
        return None
    lines: dict[Path_, int] = {}
    if composed is not None:
        _collect_lines(composed, (), lines)
    return build(plain, start, lines)


def read_override(text: str, layer: int, report: Report) -> Node | None:
    """`key.sub=value` from the command line as a tree of one branch."""
    origin = Origin(None, None, cut(text.partition("=")[0]), layer)
    key, equals, raw = text.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        report.error(origin, f"{shown(text)} is not an override: write section.key=value, e.g. args.train_iters=500")
        return None
    path: Path_ = tuple(key.split("."))
    if len(path) > MAX_DEPTH:
        report.error(replace(origin, path=""), f"{shown(key)} is a key of {len(path)} parts; the limit is {MAX_DEPTH}")
        return None
    try:
        loaded, _ = parse_yaml(f"value: {raw}")
    except BadYaml as error:
        report.error(origin, f"{shown(raw)} is {error}; quote text with special characters")
        return None
    if loaded.keys() != {"value"}:
        report.error(origin, f"{shown(raw)} is more than one value: quote text with line breaks")
        return None
    value = loaded["value"]
    node = build(value, origin)
    for depth in range(len(path) - 1, -1, -1):
        node = Node({str(path[depth]): node}, replace(origin, path=cut(".".join(map(str, path[:depth])))))
    return node


def merge(base: Node, later: Node) -> Node:
    """`later` wins key by key. A mapping with numbers as keys changes single items of a list.

    A component with `replace: true` takes nothing over from `base`.
    """
    mark = later.child(REPLACE)
    if mark is not None and mark.value is True and later.child("target") is not None:
        return later
    if isinstance(base.value, dict) and isinstance(later.value, dict):
        merged = dict(base.value)
        for key, node in later.value.items():
            merged[key] = merge(merged[key], node) if key in merged else node
        return Node(merged, base.origin)
    if isinstance(base.value, list) and _are_indices(later, len(base.value)):
        items = list(base.value)
        for key, node in later.value.items():
            items[int(key)] = merge(items[int(key)], node)
        return Node(items, base.origin)
    return later


def _are_indices(node: Node, length: int) -> bool:
    if not isinstance(node.value, dict) or not node.value:
        return False
    return all(key in map(str, range(length)) for key in node.value)


def find(root: Node, path: str) -> Node | None:
    """The node at a dotted path, or None."""
    node: Node | None = root
    for key in path.split("."):
        node = None if node is None else node.child(key)
    return node


def put(root: Node, path: str, node: Node) -> None:
    """Set a node at a dotted path; mappings on the way are made."""
    *parents, last = path.split(".")
    here = root
    for key in parents:
        step = here.child(key)
        if step is None or step.value is None:
            step = Node({}, node.origin)
            here.value[key] = step
        if not isinstance(step.value, dict):
            return  # a wrong type, which the section's own check reports
        here = step
    here.value[last] = node


def drop_missing(node: Node, report: Report) -> None:
    """Take out `???`: whoever needs the key then says that it is missing."""
    if isinstance(node.value, dict):
        for key in [key for key, child in node.value.items() if child.value == MISSING]:
            origin = node.value.pop(key).origin
            report.unfilled[origin.path] = origin
    for child in _children(node):
        drop_missing(child, report)


def drop_replace_marks(node: Node, report: Report) -> None:
    """Take out `replace`, which has done its work when the files are merged."""
    if isinstance(node.value, dict) and "target" in node.value and REPLACE in node.value:
        mark = node.value.pop(REPLACE)
        if not isinstance(mark.value, bool):
            report.error(mark.origin, f"must be true (take nothing over from earlier files) or false, not {mark.value}")
    for child in _children(node):
        drop_replace_marks(child, report)


def resolve_interpolations(root: Node, report: Report) -> None:
    """Replace `${other.key}` and `${oc.env:NAME}` by their values, in place."""
    config = None  # OmegaConf's own tree takes a while to make, and most configurations need none
    count = 0
    pending: list[tuple[Node, Path_]] = [(root, ())]
    while pending:
        node, path = pending.pop()
        if isinstance(node.value, dict):
            pending += [(child, (*path, key)) for key, child in node.value.items()]
        elif isinstance(node.value, list):
            pending += [(child, (*path, index)) for index, child in enumerate(node.value)]
        elif isinstance(node.value, str) and "${" in node.value:
            count += node.value.count("${")
            if count > MAX_INTERPOLATIONS:  # each may double what the next one refers to
                report.error(node.origin, f"more than {MAX_INTERPOLATIONS} interpolations ${{...}} in a configuration")
                return
            config = OmegaConf.create(root.plain()) if config is None else config
            _resolve_one(node, path, config, report)


def _resolve_one(node: Node, path: Path_, config: Any, report: Report) -> None:
    parent = config
    try:
        for key in path[:-1]:
            parent = parent[key]
        value = parent[path[-1]]
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        report.error(node.origin, f"can't resolve {cut(node.value)}: {str(error).splitlines()[0]}")
        return
    except RecursionError:
        report.error(node.origin, f"can't resolve {cut(node.value)}: it leads back to itself")
        return
    resolved = build(plain, node.origin)
    node.value = resolved.value


def _children(node: Node) -> list[Node]:
    if isinstance(node.value, dict):
        return list(node.value.values())
    return node.value if isinstance(node.value, list) else []


def _collect_lines(node: yaml.Node, path: Path_, lines: dict[Path_, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                here = (*path, str(key.value))
                lines[here] = key.start_mark.line + 1
                _collect_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _collect_lines(value, (*path, index), lines)
