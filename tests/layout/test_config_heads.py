"""The commands at the top of every shipped configuration run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cogvideox.config.load import load_config
from layout.source_tree import ROOT

# A command ends with its line, or before the words beside it.
COMMAND = re.compile(r"bash (finetune_\w+|inference)\.sh (configs/.*?)(?:\s{3,}.*)?$", re.MULTILINE)


def commands(file: Path) -> list[tuple[str, list[str]]]:
    """(script, words) of the comment that a file opens with."""
    head = re.match(r"(#.*\n)+", file.read_text())
    assert head is not None, f"{file.name} opens with a comment"
    text = re.sub(r"^# ?", "", head.group(), flags=re.MULTILINE)
    return [(script, shlex.split(words)) for script, words in COMMAND.findall(re.sub(r"\\\n\s*", "", text))]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_commands_of_a_head(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for script, words in commands(file):
        base = [word for word in words if "=" not in word]
        kind = "sample" if script == "inference" else "train"
        config = load_config(base, [word for word in words if "=" in word], kind)  # type: ignore[arg-type]
        assert not config.warnings, f"{script} {words}"
        assert f"configs/{file.name}" in base, "a head's commands use its file"


def test_every_model_file_shows_how_it_trains_and_samples() -> None:
    for file in (ROOT / "configs").glob("*.yaml"):
        if "network_config" in file.read_text():
            kinds = {script == "inference" for script, _ in commands(file)}
            assert kinds == {True, False}, f"{file.name} shows {commands(file)}"
