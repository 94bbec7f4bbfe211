"""Running cases: one mutated input, the program's answer to it, and what is wrong with the answer."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from cogvideox.errors import UserError
from fuzz.kinds import KINDS, Kind
from fuzz.mutate import CANARY

TIME_LIMIT_S = 60.0  # for one case, on a busy machine; most take milliseconds
MAX_MESSAGE = 4000  # characters; a configuration may have several problems


class _TooLongError(BaseException):
    """No Exception, so that no reader takes it for one of a damaged file."""


@dataclass(frozen=True)
class Answer:
    """outcome: read, refused, or what is wrong: traceback, hang, crash, executed, silent, message."""

    kind: str
    index: int
    outcome: str
    text: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.outcome not in ("read", "refused")


@contextmanager
def prepared(name: str, seed: int) -> Iterator[Callable[[int], Answer]]:
    """A function from a case's number to the answer. The same seed and number give the same input everywhere."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        os.environ[CANARY] = str(Path(scratch, "canary"))
        specimen = Path(scratch, "specimen")
        specimen.mkdir()
        kind.prepare(specimen)
        expected = kind.read(specimen)

        def run(index: int) -> Answer:
            folder = Path(scratch, "case")
            shutil.copytree(specimen, folder)
            outcome, text = _run(kind, folder, random.Random(f"{seed} {name} {index}"), expected)
            if Path(os.environ[CANARY]).exists():
                Path(os.environ[CANARY]).unlink()
                outcome = "executed"
            shutil.rmtree(folder)
            return Answer(name, index, outcome, text)

        yield run


def _run(kind: Kind, folder: Path, rng: random.Random, expected: Any) -> tuple[str, str]:
    files = sorted({file for pattern in kind.files for file in folder.glob(pattern)})
    file, mutation = rng.choice(files), rng.choice(kind.mutations)
    mutation(file, rng)
    try:
        with _time_limit():
            found = kind.read(folder)
    except UserError as error:
        text = str(error)
        is_fine = 0 < len(text) < MAX_MESSAGE and "Traceback" not in text
        return ("refused" if is_fine else "message"), text[:200]
    except _TooLongError:
        return "hang", f"{file.name}: more than {TIME_LIMIT_S:g} s"
    except Exception as error:  # noqa: BLE001 - exactly what must not happen
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{file.name}: {type(error).__name__}: {str(error)[:120]} ({place.filename}:{place.lineno})"
    if kind.is_exact and not _same(found, expected):
        return "silent", f"{file.name}: other tensors than were written"
    return "read", ""


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries print about damaged files."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        kept = os.dup(1), os.dup(2)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        before = os.environ.get(CANARY)
        try:
            yield
        finally:
            for target, source in zip((1, 2), kept, strict=True):
                os.dup2(source, target)
                os.close(source)
            if before is None:
                os.environ.pop(CANARY, None)
