"""Commands as text: what a shell and our own parser make of them is what was meant."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from cogvideox import commands
from cogvideox.config.load import read_layers
from cogvideox.config.report import Report
from cogvideox.config.tree import find

VALUES = ["ckpts/run", "/a/b-1.5", "a", "", "true", "12", "1e-3", "a: b", "[x]", "it's", 'say "x"', "${a.b}", "é\\n", 7]


@pytest.mark.parametrize("value", [*VALUES, ["a ship", "b, c"], [480, 720]], ids=repr)
def test_override_is_read_as_it_was_meant(value: object) -> None:
    (word,) = shlex.split(shlex.join([commands.override("args.load", value)]))
    report = Report()
    (tree,) = read_layers([], [word], report)
    node = find(tree, "args.load")
    assert not report.errors and node is not None and node.plain() == value


def test_paths_are_short_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.shown(tmp_path / "a" / "b c") == "a/b c"
    assert commands.shown(Path("a/../b")) == "b"
    assert commands.shown(tmp_path.parent) == str(tmp_path.parent)
    assert commands.override("args.load", tmp_path / "run 1") == 'args.load="run 1"'


def test_scripts_in_the_repositorys_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(commands.ROOT)
    monkeypatch.setattr(sys, "prefix", str(commands.ROOT / ".venv"))
    monkeypatch.setattr(sys, "executable", str(commands.ROOT / ".venv/bin/python"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert commands.sample(["a.yaml", "args.prompts=[a]"]) == "bash inference.sh a.yaml 'args.prompts=[a]'"
    assert commands.train(["a.yaml"]) == "bash finetune_single_gpu.sh a.yaml"
    assert commands.train(["a.yaml"], 4) == "NPROC=4 bash finetune_multi_gpus.sh a.yaml"
    assert (
        commands.tool("merge_lora", "--adapter", Path("a b")) == ".venv/bin/python tools/merge_lora.py --adapter 'a b'"
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert commands.train(["a.yaml"], 16) == "HOSTFILE=hosts bash finetune_multi_gpus.sh a.yaml"


def test_another_environment_is_named_by_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(commands.ROOT)
    monkeypatch.setattr(sys, "prefix", "/opt/conda")
    monkeypatch.setattr(sys, "executable", "/opt/conda/bin/python")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert commands.sample(["a.yaml"]) == "/opt/conda/bin/python sat/sample_video.py --base a.yaml"
    launched = "/opt/conda/bin/python tools/launch.py 2 sat/train_video.py"
    assert commands.train(["a.yaml"], 2) == f"{launched} --base a.yaml"


def test_commands_stand_on_lines_of_their_own() -> None:
    text = commands.next_steps([("look", "ls"), ("in Python", "import a\nprint(a)")])
    assert text == "next:\n  look:\n    ls\n  in Python:\n    import a\n    print(a)"
