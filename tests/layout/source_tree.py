"""Reads the source tree as syntax trees: which module imports what, and how long things are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "sat"
LIBRARY = SOURCE / "cogvideox"


@dataclass(frozen=True)
class Module:
    """One python file. `room` is its folder below cogvideox, or its own name at the top ("errors")."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def room(self) -> str:
        parts = self.path.relative_to(LIBRARY).with_suffix("").parts
        return parts[0]

    @property
    def num_lines(self) -> int:
        return len(self.path.read_text().splitlines())

    def imports(self, *, at_start: bool = False) -> Iterator[str]:
        """Dotted names of everything imported, wherever the statement stands; at_start: only at the module's top."""
        for node in self.tree.body if at_start else ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}:{node.lineno}: relative import"
                # `from cogvideox.weights import vae_map` names the module only in its alias.
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def functions(self) -> Iterator[tuple[str, int]]:
        """Name with line, and number of lines, of every function and method."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{self.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def read_modules(folder: Path) -> list[Module]:
    files = sorted(folder.rglob("*.py"))
    assert files, f"no python files below {folder}"
    return [Module(path, ast.parse(path.read_text())) for path in files]
