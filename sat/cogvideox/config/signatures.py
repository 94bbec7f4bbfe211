"""What a component takes, read from its source with `ast`: a config check imports neither torch nor SAT.

Which classes may be components says `components.py`.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cogvideox.config.value_types import mentions

SOURCE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Parameter:
    """One constructor parameter. `supplied`: keyword-only without default, given by the parent."""

    name: str
    annotation: ast.expr | None
    required: bool
    supplied: bool
    default: ast.expr | None = None

    @property
    def takes_nodes(self) -> bool:
        return mentions(self.annotation, "ComponentNode")


@dataclass(frozen=True)
class Signature:
    """The parameters of a class or function; `open`: it takes **kwargs (only classes from elsewhere do)."""

    target: str
    parameters: dict[str, Parameter]
    open: bool = False

    @property
    def yaml_keys(self) -> list[str]:
        return [parameter.name for parameter in self.parameters.values() if not parameter.supplied]

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of parameters that are left unwritten, where the source says them as plain values."""
        given = {p.name: p.default for p in self.parameters.values() if p.default is not None}
        return {name: ast.literal_eval(default) for name, default in given.items() if _is_plain(default)}


@cache
def read_signature(target: str) -> Signature:
    """The signature of `package.module.Class`, which is one of the components."""
    module, _, name = target.rpartition(".")
    file = find_module(module)
    definition = None if file is None else _find_definition(file, name)
    assert definition is not None, f"{target} is listed as a component and has no source"
    return _signature_of(target, *definition)


def find_module(module: str) -> Path | None:
    """The file of a module, without importing its packages."""
    relative = Path(*module.split("."))
    for root in [SOURCE_ROOT, *(Path(entry or ".") for entry in sys.path)]:
        for file in (root / relative.with_suffix(".py"), root / relative / "__init__.py"):
            if file.is_file():
                return file
    return None


@cache
def _syntax(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def _find_definition(file: Path, name: str) -> tuple[Path, ast.ClassDef | ast.FunctionDef] | None:
    """The class or function of that name, following `from x import y`."""
    for node in _syntax(file).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return file, node
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = find_module(node.module)
                    return None if source is None else _find_definition(source, alias.name)
    return None


def _signature_of(target: str, file: Path, definition: ast.ClassDef | ast.FunctionDef) -> Signature:
    if isinstance(definition, ast.FunctionDef):
        return _from_arguments(target, definition.args, skip_first=False)
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _from_arguments(target, node.args, skip_first=True)
    inherited = _inherited(target, file, definition)
    if _is_dataclass(definition):
        own = {parameter.name: parameter for parameter in _dataclass_fields(definition)}
        return Signature(target, {**inherited.parameters, **own})
    return inherited


def _inherited(target: str, file: Path, definition: ast.ClassDef) -> Signature:
    """The first base class with a constructor; those of installed libraries take nothing from YAML."""
    for base in definition.bases:
        found = _find_definition(file, base.id) if isinstance(base, ast.Name) else None
        if found is not None and not _is_installed(found[0]):
            return _signature_of(target, *found)
    return Signature(target, {})


def _is_installed(file: Path) -> bool:
    return "site-packages" in file.parts or Path(sysconfig.get_path("stdlib")) in file.parents


def _is_plain(value: ast.expr) -> bool:
    plain = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.UnaryOp, ast.USub, ast.Load)
    return all(isinstance(node, plain) for node in ast.walk(value))


def _from_arguments(target: str, arguments: ast.arguments, *, skip_first: bool) -> Signature:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [*[None] * (len(positional) - len(arguments.defaults)), *arguments.defaults]
    parameters = [
        Parameter(argument.arg, argument.annotation, required=default is None, supplied=False, default=default)
        for argument, default in zip(positional, defaults, strict=True)
    ][1 if skip_first else 0 :]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(Parameter(argument.arg, argument.annotation, False, default is None, default))
    return Signature(target, {p.name: p for p in parameters}, open=arguments.kwarg is not None)


def _is_dataclass(definition: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list)


def _dataclass_fields(definition: ast.ClassDef) -> list[Parameter]:
    return [
        Parameter(node.target.id, node.annotation, required=node.value is None, supplied=False, default=node.value)
        for node in definition.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not mentions(node.annotation, "ClassVar")
    ]
