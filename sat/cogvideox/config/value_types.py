"""Whether a YAML value fits a type annotation, read from its syntax tree so that no class has to be imported.

Understood: int float bool str None object Any, unions (`X | None`, Optional, Union), list, Sequence,
tuple, dict, Literal. Any other annotation accepts every value: the class itself must check it.
"""

from __future__ import annotations

import ast
import math
from typing import Any

from cogvideox.user_files import cut

LISTS = ("list", "List", "Sequence", "Iterable", "Collection")
_NULLS = ("None", "none")  # Python's word, where YAML says null
_DICTS = ("dict", "Dict", "Mapping", "MutableMapping")


class TypeMismatch(ValueError):
    """The value does not fit; the text says what would."""


def convert(value: Any, annotation: ast.expr | None) -> Any:
    """The value as the annotation wants it: an int becomes float, a list becomes a tuple.

    Raises:
        TypeMismatch: the value does not fit.
    """
    if annotation is None:
        return value
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return convert(value, ast.parse(annotation.value, mode="eval").body)
    options = _union_options(annotation)
    if len(options) > 1:
        return _convert_union(value, options, annotation)
    name, arguments = _split(annotation)
    if name in LISTS or name == "tuple":
        return _convert_sequence(value, name, arguments, annotation)
    if name in _DICTS:
        return _convert_dict(value, arguments, annotation)
    if name == "Literal":
        choices = [ast.literal_eval(argument) for argument in arguments]
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise TypeMismatch(f"must be one of {', '.join(map(str, choices))}, not {value!r}")
        return value
    return _convert_scalar(value, name, annotation)


def describe(annotation: ast.expr | None) -> str:
    """The type in the words of a YAML author."""
    if annotation is None:
        return "any value"
    return " or ".join("null" if _is_none(option) else _describe_one(option) for option in _union_options(annotation))


def mentions(annotation: ast.expr | None, name: str) -> bool:
    """Whether the annotation names this type anywhere."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return mentions(ast.parse(annotation.value, mode="eval").body, name)
    return any(_split(node)[0] == name for node in ast.walk(annotation) if isinstance(node, ast.expr))


def takes_object(annotation: ast.expr | None) -> bool:
    """Whether a built component may be given: no annotation, `object`, `Any` or some class."""
    if annotation is None:
        return True
    plain = {"int", "float", "bool", "str", "None", "Literal", "tuple", *LISTS, *_DICTS}
    return any(_split(option)[0] not in plain and not _is_none(option) for option in _union_options(annotation))


def _describe_one(annotation: ast.expr) -> str:
    name, arguments = _split(annotation)
    if name == "Literal":
        return "one of " + ", ".join(str(ast.literal_eval(argument)) for argument in arguments)
    if name == "tuple" and arguments and not _is_ellipsis(arguments[-1]):
        return f"a list of {len(arguments)} {describe(arguments[0])}"
    if name in LISTS or name == "tuple":
        return f"a list of {describe(arguments[0])}" if arguments else "a list"
    if name in _DICTS:
        return "a mapping"
    if name in ("int", "float", "str"):
        return name
    if name == "bool":
        return "true or false"
    return "a component (target and params)"


def _split(annotation: ast.expr) -> tuple[str, list[ast.expr]]:
    """`Sequence[int]` -> ("Sequence", [int]); `typing.Any` -> ("Any", [])."""
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice
        return _split(annotation.value)[0], list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if isinstance(annotation, ast.Attribute):
        return annotation.attr, []
    return (annotation.id, []) if isinstance(annotation, ast.Name) else ("", [])


def _union_options(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _union_options(annotation.left) + _union_options(annotation.right)
    name, arguments = _split(annotation)
    if name == "Optional":
        return [*_union_options(arguments[0]), ast.Constant(value=None)]
    if name == "Union":
        return [option for argument in arguments for option in _union_options(argument)]
    return [annotation]


def _is_none(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Constant) and annotation.value is None


def _is_ellipsis(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Constant) and annotation.value is Ellipsis


def _mismatch(value: Any, annotation: ast.expr) -> TypeMismatch:
    hint = f"; write [{cut(value)}]" if isinstance(value, str) and _split(annotation)[0] in LISTS else ""
    shown = "a mapping" if isinstance(value, dict) else "null" if value is None else cut(repr(value))
    return TypeMismatch(f"must be {describe(annotation)}, not {shown}{hint}")


def _convert_union(value: Any, options: list[ast.expr], annotation: ast.expr) -> Any:
    if value is None:
        if any(_is_none(option) for option in options):
            return None
        raise _mismatch(value, annotation)
    if value in _NULLS and any(map(_is_none, options)) and not any(_allows(option, value) for option in options):
        return None
    reasons = []
    for option in options:
        if not _is_none(option):
            try:
                return convert(value, option)
            except TypeMismatch as reason:
                reasons.append(reason)
    raise reasons[0] if len(reasons) == 1 else _mismatch(value, annotation)


def _allows(option: ast.expr, word: str) -> bool:
    """Whether the word is one of the choices of a Literal."""
    name, arguments = _split(option)
    return name == "Literal" and word in map(ast.literal_eval, arguments)


def _convert_sequence(value: Any, name: str, arguments: list[ast.expr], annotation: ast.expr) -> Any:
    if not isinstance(value, list | tuple):
        raise _mismatch(value, annotation)
    if name != "tuple" or not arguments:
        return [convert(item, arguments[0]) if arguments else item for item in value]
    if _is_ellipsis(arguments[-1]):
        return tuple(convert(item, arguments[0]) for item in value)
    if len(value) != len(arguments):
        raise TypeMismatch(f"must be {describe(annotation)}, not {list(value)}")
    return tuple(convert(item, argument) for item, argument in zip(value, arguments, strict=True))


def _convert_dict(value: Any, arguments: list[ast.expr], annotation: ast.expr) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(value, annotation)
    return {key: convert(item, arguments[1]) if len(arguments) == 2 else item for key, item in value.items()}


def _convert_scalar(value: Any, name: str, annotation: ast.expr) -> Any:
    if name == "bool":
        if isinstance(value, bool):
            return value
    elif name in ("int", "float"):
        number = _number(value)
        if number is not None and (name == "float" or number == int(number)):
            return float(number) if name == "float" else int(number)
    elif name == "str":
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    elif value is None or name != "object":
        return value  # a class that is checked by whoever takes it
    raise _mismatch(value, annotation)


def _number(value: Any) -> int | float | None:
    """A finite number, also from text such as '1e-8', which plain YAML readers take for a string."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) if isinstance(value, str) else value
        return number if math.isfinite(number) else None
    except (ValueError, OverflowError):  # no number, or a whole one that no float can hold
        return None
