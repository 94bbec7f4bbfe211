"""Modules and functions stay readable in one go; entry scripts only parse, check, build and run."""

from __future__ import annotations

import ast
import subprocess

from layout.source_tree import LIBRARY, ROOT, SOURCE, read_modules

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_SCRIPT_LINES = 100
MAX_FILE_BYTES = 1_000_000
MAX_DEMO_BYTES = 25_000_000
DRAWERS = {"utils", "util", "helpers", "common", "misc"}

CODE = [*read_modules(LIBRARY), *read_modules(ROOT / "tools"), *read_modules(ROOT / "benchmarks")]


def test_modules_are_short() -> None:
    long = {module.name: module.num_lines for module in CODE if module.num_lines > MAX_MODULE_LINES}
    assert not long


def test_functions_are_short() -> None:
    long = {name: lines for module in CODE for name, lines in module.functions() if lines > MAX_FUNCTION_LINES}
    assert not long


def test_entry_scripts_are_short() -> None:
    conversions = [path for path in ROOT.glob("tools/*.py") if "\nfrom cogvideox.conversion" in path.read_text()]
    scripts = {path.name: len(path.read_text().splitlines()) for path in [*SOURCE.glob("*.py"), *conversions]}
    long = {name: lines for name, lines in scripts.items() if lines > MAX_SCRIPT_LINES}
    assert scripts and not long


def test_no_drawers() -> None:
    assert not [module.name for module in CODE if module.path.stem in DRAWERS]


def test_no_class_that_yaml_can_build_takes_kwargs() -> None:
    found = []
    for module in CODE:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                found += [
                    f"{module.name}:{node.name}"
                    for item in node.body
                    if isinstance(item, ast.FunctionDef) and item.name == "__init__" and item.args.kwarg
                ]
    assert not found


def test_tracked_files_stay_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    assert files
    outside = {str(f): f.stat().st_size for f in files if "demo" not in f.parts and f.stat().st_size > MAX_FILE_BYTES}
    assert not outside
    assert sum(f.stat().st_size for f in files if ROOT / "demo" in f.parents) <= MAX_DEMO_BYTES
