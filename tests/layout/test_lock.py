"""The two lock files and pyproject.toml say the same. In CI `tools/lock.sh` checks that every Python resolves."""

from __future__ import annotations

import re

import pytest
from layout.source_tree import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = (ROOT / "pyproject.toml").read_text()
PYTHONS = [f"3.{minor}" for minor in range(8, 20)]


def pins(name: str) -> list[str]:
    """The lines `package==version ; marker`, without hashes and comments."""
    lines = (ROOT / name).read_text().splitlines()
    return [line.removesuffix(" \\").strip() for line in lines if re.match(r"[a-z0-9]", line)]


def supported() -> list[str]:
    match = re.search(r'requires-python = "(.*)"', PROJECT)
    assert match is not None
    return list(SpecifierSet(match.group(1)).filter(PYTHONS))


def versions(python: str) -> dict[str, str]:
    """Package -> version on Linux under that Python."""
    environment = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    wanted = [Requirement(each) for each in pins("requirements.lock")]
    found = [each for each in wanted if each.marker is None or each.marker.evaluate(environment)]
    names = [canonicalize_name(each.name) for each in found]
    assert len(names) == len(set(names)), f"two versions of a package for Python {python}"
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found}


def test_torch_is_pinned_and_has_no_hash() -> None:
    with_hashes = pins("requirements.hashes")
    assert "torch==2.13.0" in pins("requirements.lock")
    assert [each for each in pins("requirements.lock") if each not in with_hashes] == ["torch==2.13.0"]


def test_every_other_package_has_a_hash() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.hashes").read_text())
    assert len(blocks[1:]) == len(pins("requirements.hashes"))
    assert not [block.splitlines()[0] for block in blocks[1:] if "--hash=sha256:" not in block]


@pytest.mark.parametrize("python", supported())
def test_locked_versions_are_in_the_ranges_of_pyproject(python: str) -> None:
    locked = versions(python)
    tables = re.search(r"^dependencies = \[(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    assert tables is not None
    for text in re.findall(r'"([^"]+)"', re.sub(r"#.*", "", tables.group(1))):
        wanted = Requirement(text)
        version = locked.get(canonicalize_name(wanted.name))
        assert version is not None and wanted.specifier.contains(version), f"{text}: {version} is locked"


def test_readme_and_setup_name_the_same_pythons() -> None:
    first, last = supported()[0], supported()[-1]
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text()
    low, high = (f"({each.replace('.', ', ')})" for each in (first, last))
    assert f"{low} <= sys.version_info[:2] <= {high}" in (ROOT / "tools/setup_env.sh").read_text()
