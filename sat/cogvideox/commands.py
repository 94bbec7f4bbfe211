"""Commands to type next, as text that can be pasted into bash or zsh.

An entry script of the repository where this process runs in the repository's own environment, which the script then
finds ready; otherwise the Python that runs now.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Text that YAML reads as itself: begins like a path or a word with a slash in it, and holds no special character.
_PLAIN = re.compile(r"(?:[./]|\w[\w.-]*/)[\w./-]*")


def train(words: Sequence[str], processes: int = 1) -> str:
    """The command that trains with these files and overrides.

    processes: of all machines; with several machines (a launcher says so in the environment) the hosts' file is left to
    the user, under the name `hosts`.
    """
    if processes == 1:
        return _entry("finetune_single_gpu.sh", "sat/train_video.py", words)
    if os.environ.get("LOCAL_WORLD_SIZE", str(processes)) != str(processes):
        return "HOSTFILE=hosts " + shlex.join(["bash", shown(ROOT / "finetune_multi_gpus.sh"), *words])
    if _in_own_environment():
        return f"NPROC={processes} " + shlex.join(["bash", shown(ROOT / "finetune_multi_gpus.sh"), *words])
    return _launched("sat/train_video.py", words, processes)


def sample(words: Sequence[str], processes: int = 1) -> str:
    """The command that samples with these files and overrides on this machine."""
    if processes == 1:
        return _entry("inference.sh", "sat/sample_video.py", words)
    if _in_own_environment():
        return f"NPROC={processes} " + _entry("inference.sh", "", words)
    return _launched("sat/sample_video.py", words, processes)


def cache(words: Sequence[str]) -> str:
    """The command that fills the cache of a training with these files and overrides."""
    return shlex.join([_python(), shown(ROOT / "sat/cache_dataset.py"), "--base", *words])


def tool(name: str, *words: str | Path) -> str:
    """The command of `tools/<name>.py`; paths among the words are written as seen from here."""
    given = [shown(word) if isinstance(word, Path) else word for word in words]
    return shlex.join([_python(), shown(ROOT / "tools" / f"{name}.py"), *given])


def override(key: str, value: Any) -> str:
    """`key=value` that the command line reads as this value: text, number, list or path."""
    if isinstance(value, Path):
        value = shown(value)
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return f"{key}={value}"
    # JSON is YAML. `${` would be looked up in the configuration.
    return f"{key}=" + json.dumps(value, ensure_ascii=False).replace("${", "\\\\${")


def shown(path: Path) -> str:
    """A path as seen from the working directory when it lies below it, else in full."""
    absolute, here = Path(os.path.abspath(path.expanduser())), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def next_steps(steps: Sequence[tuple[str, str]]) -> str:
    """`(what it does, command)` as lines, each command on its own lines, so that it can be marked and pasted."""
    return "\n".join(["next:", *(f"  {what}:\n" + _indented(command) for what, command in steps)])


def _indented(command: str) -> str:
    return "\n".join(f"    {line}" for line in command.split("\n"))


def _entry(script: str, program: str, words: Sequence[str]) -> str:
    if _in_own_environment():
        return shlex.join(["bash", shown(ROOT / script), *words])
    return shlex.join([_python(), shown(ROOT / program), "--base", *words])


def _launched(program: str, words: Sequence[str], processes: int) -> str:
    launcher = [shown(ROOT / "tools/launch.py"), str(processes)]
    return shlex.join([_python(), *launcher, shown(ROOT / program), "--base", *words])


def _in_own_environment() -> bool:
    return Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()


def _python() -> str:
    """The interpreter that runs now: it has the packages, and the user's shell may have another one active."""
    return shown(Path(sys.executable)) if _in_own_environment() else sys.executable
