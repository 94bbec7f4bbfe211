"""Which YAML value fits which annotation."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from cogvideox.config.value_types import TypeMismatch, convert, describe, mentions, takes_object


def annotation(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, "int", 3),
        (3.0, "int", 3),
        ("12", "int", 12),
        (3, "float", 3.0),
        ("1e-8", "float", 1e-8),
        (True, "bool", True),
        ("a", "str", "a"),
        (2024, "str", "2024"),
        (None, "int | None", None),
        (None, "Optional[int]", None),
        (4, "typing.Optional[int]", 4),
        ([1, 2], "Union[int, Sequence[int]]", [1, 2]),
        (2, "int | Sequence[int]", 2),
        ([1, 2.0], "list[float]", [1.0, 2.0]),
        ([1, 2], "tuple[int, int]", (1, 2)),
        ([1, 2, 3], "tuple[int, ...]", (1, 2, 3)),
        ([1, "a"], "list", [1, "a"]),
        ({"a": 1}, "dict[str, float]", {"a": 1.0}),
        ({"a": 1}, "Mapping", {"a": 1}),
        ("cpu", 'Literal["cpu", "cuda"]', "cpu"),
        ("x", '"str"', "x"),
        ("x", "Path", "x"),
        ("None", "str | None", None),  # Python's word
        ("none", "int | None", None),
        ("None", "str", "None"),
        ("none", 'Literal["none", "all"] | None', "none"),
        (None, "object", None),
        ({"a": 1}, "Any", {"a": 1}),
    ],
)
def test_values_that_fit(value: Any, kind: str, expected: Any) -> None:
    result = convert(value, annotation(kind))
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "match"),
    [
        (True, "int", "must be int, not True"),
        (10**400, "float", "must be float, not 1000"),
        ("None", "int", "must be int, not 'None'"),
        (1.5, "int", "must be int, not 1.5"),
        ("many", "float", "must be float, not 'many'"),
        (float("nan"), "float", "must be float, not nan"),
        (float("inf"), "int", "must be int, not inf"),
        (1, "bool", "must be true or false, not 1"),
        ("yes", "bool", "must be true or false, not 'yes'"),
        (True, "str", "must be str, not True"),
        (None, "str", "must be str, not null"),
        ([1], "str | None", r"must be str, not \[1\]"),
        ("x", "int | float | None", "must be int or float or null, not 'x'"),
        (None, "int | str", "must be int or str, not null"),
        ("x", "list[str]", r"must be a list of str, not 'x'; write \[x\]"),
        ([1, "a"], "Sequence[int]", "must be int, not 'a'"),
        ([1], "tuple[int, int]", r"must be a list of 2 int, not \[1\]"),
        ([1], "dict[str, int]", r"must be a mapping, not \[1\]"),
        ({"a": "b"}, "dict[str, int]", "must be int, not 'b'"),
        ("tpu", 'Literal["cpu", "cuda"]', "must be one of cpu, cuda, not 'tpu'"),
        (1, "Literal[True]", "must be one of True, not 1"),
        (3, "object", r"must be a component \(target and params\), not 3"),
    ],
)
def test_values_that_do_not_fit(value: Any, kind: str, match: str) -> None:
    with pytest.raises(TypeMismatch, match=match):
        convert(value, annotation(kind))


def test_without_annotation_everything_fits() -> None:
    assert convert("x", None) == "x"
    assert describe(None) == "any value"


@pytest.mark.parametrize(
    ("kind", "is_taken"),
    [("object", True), ("Guidance | None", True), ("int", False), ("str | None", False), ("list[int]", False)],
)
def test_which_parameters_take_built_components(kind: str, is_taken: bool) -> None:
    assert takes_object(annotation(kind)) is is_taken


def test_a_type_is_found_inside_an_annotation() -> None:
    assert mentions(annotation("dict[str, ComponentNode] | None"), "ComponentNode")
    assert mentions(annotation("'list[targets.ComponentNode]'"), "ComponentNode")
    assert not mentions(annotation("dict[str, int]"), "ComponentNode")
    assert not mentions(None, "ComponentNode")
