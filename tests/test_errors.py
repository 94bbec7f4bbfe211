"""User errors become one line and status 2; bugs keep their traceback."""

from __future__ import annotations

import pytest
from cogvideox.errors import CheckpointError, run_cli


def fail(argv: object) -> None:
    raise CheckpointError("weights.pt: not there")


def test_a_users_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert run_cli(fail, []) == 2
    assert capsys.readouterr().err == "error: weights.pt: not there\n"


def test_other_processes_say_who_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    assert run_cli(fail, []) == 2
    assert capsys.readouterr().err == "[rank 3] error: weights.pt: not there\n"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(CheckpointError, match="not there"):
        run_cli(fail, ["--debug"])


def test_bugs_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda argv: 1 / 0, [])  # type: ignore[arg-type,func-returns-value]


def test_success() -> None:
    assert run_cli(lambda argv: None, []) == 0
