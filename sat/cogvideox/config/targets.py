"""Component nodes: `{target: package.module.Class, params: {...}}` checked against signatures, and built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from cogvideox.config.components import allowed_targets
from cogvideox.config.report import Origin, Report, suggestion
from cogvideox.config.schema import ComponentNode
from cogvideox.config.signatures import Parameter, Signature, read_signature
from cogvideox.config.tree import Node, build
from cogvideox.config.value_types import LISTS, TypeMismatch, convert, describe, mentions, takes_object
from cogvideox.user_files import shown

__all__ = ["ComponentNode", "check_component", "instantiate"]

# Stands for a component that is missing or wrong, so that everything else can still be checked.
ABSENT: ComponentNode = {"target": "", "params": {}}
_FAILED = object()


def instantiate(node: Mapping[str, Any], **supplied: Any) -> Any:
    """Build a component, inside out. `supplied`: the keyword-only parameters that the parent gives in code.

    Nodes under a parameter that is annotated with ComponentNode are handed over unbuilt.

    Raises:
        ConfigError: unknown target or parameter, missing parameter, wrong type.
    """
    report = Report()
    checked = check_component(build(dict(node), Origin("", None, "component")), report)
    report.raise_if_any()
    assert checked is not None, "a component without problems has a checked form"
    return _build(checked, supplied)


def _build(node: ComponentNode, supplied: Mapping[str, Any]) -> Any:
    signature = read_signature(node["target"])
    params = {}
    for name, value in node["params"].items():
        parameter = signature.parameters.get(name)
        unbuilt = parameter is not None and parameter.takes_nodes
        params[name] = value if unbuilt or not is_component(value) else _build(value, {})
    module, _, name = node["target"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**params, **supplied)


def is_component(value: Any) -> bool:
    return isinstance(value, Mapping) and "target" in value


def check_component(node: Node, report: Report) -> ComponentNode | None:
    """The node with converted values, always with `params`; None when it can't be used (see the report)."""
    if not isinstance(node.value, dict):
        report.error(node.origin, "must be a component: target (a class) and params")
        return None
    for key, child in node.value.items():
        if key not in ("target", "params"):
            report.unknown(child.origin, key, ("target", "params"), "key of a component")
    target = node.child("target")
    if target is None or not isinstance(target.value, str):
        report.error(
            node.origin if target is None else target.origin,
            "a component needs `target`, the name of a class",
        )
        return None
    allowed = allowed_targets(node.origin.path.rpartition(".")[2])
    if target.value not in allowed:
        text = f"unknown target {shown(target.value)}; {suggestion(target.value, allowed)}"
        report.error(target.origin, f"{text} (a configuration names classes of this program only)")
        return None
    signature = read_signature(target.value)
    params = _check_params(node, target, signature, report)
    return {"target": target.value, "params": params}


def _check_params(node: Node, target: Node, signature: Signature, report: Report) -> dict[str, Any]:
    params = node.child("params")
    if params is not None and params.value is not None and not isinstance(params.value, dict):
        report.error(params.origin, f"must be a mapping of the parameters of {signature.target}")
        return {}
    given: dict[str, Node] = dict(params.value) if params is not None and params.value else {}
    checked: dict[str, Any] = {}
    for name, child in given.items():
        parameter = signature.parameters.get(name)
        if parameter is None and not signature.open:
            if child.origin.layer < target.origin.layer:
                report.notice(f"{child.origin.place()}: {child.origin.path} is not used by {signature.target}")
            else:
                report.unknown(child.origin, name, signature.yaml_keys, f"parameter of {signature.target}:")
        elif parameter is not None and parameter.supplied:
            near = suggestion(name, signature.yaml_keys)
            report.error(child.origin, f"{name!r} is given by the program and is not a YAML key; {near}")
        else:
            value = _check_value(child, parameter, report)
            if value is not _FAILED:
                checked[name] = value
    for name, parameter in signature.parameters.items():
        if parameter.required and name not in given:
            report.error(
                (params or node).origin,
                f"missing parameter {name!r} ({describe(parameter.annotation)}) of {signature.target}",
            )
    return checked


def _check_value(node: Node, parameter: Parameter | None, report: Report) -> Any:
    """The converted value, or _FAILED."""
    if parameter is None:
        return node.plain()
    if parameter.takes_nodes:
        return _check_unbuilt(node, parameter, report)
    if is_component(node.value):
        if takes_object(parameter.annotation):
            return check_component(node, report) or _FAILED
        report.error(node.origin, f"must be {describe(parameter.annotation)}, not a component")
        return _FAILED
    if isinstance(node.value, dict) and takes_object(parameter.annotation):
        report.error(node.origin, "must be a component: target (a class) and params")
        return _FAILED
    try:
        return convert(node.plain(), parameter.annotation)
    except TypeMismatch as error:
        report.error(node.origin, str(error))
        return _FAILED


def _check_unbuilt(node: Node, parameter: Parameter, report: Report) -> Any:
    """One node, or a mapping or list of nodes. A null entry switches off what an earlier file has set."""
    if node.value is None:
        return None
    if is_component(node.value):
        return check_component(node, report) or _FAILED
    if isinstance(node.value, dict):
        return {
            key: check_component(child, report) or ABSENT
            for key, child in node.value.items()
            if child.value is not None
        }
    if isinstance(node.value, list) and any(mentions(parameter.annotation, name) for name in LISTS):
        return [check_component(child, report) or ABSENT for child in node.value]
    report.error(node.origin, f"{parameter.name} takes components (target and params)")
    return _FAILED
