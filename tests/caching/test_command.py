"""cache_dataset.py as a user meets it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_dataset
import pytest
from cogvideox.caching.options import read_options
from cogvideox.errors import ConfigError, run_cli
from programs import wait_until


@pytest.fixture
def command(settings_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., int]:
    """Run the script in this process; its status."""
    words = ["--base", str(settings_of("2b")), f"args.cache={tmp_path / 'cache'}", "args.load=nowhere"]
    return lambda *more: run_cli(cache_dataset.main, [*words, *more])


def test_it_stops_when_asked_and_goes_on(command: Callable[..., int], entries: Any, tmp_path: Path, capfd: Any) -> None:
    views = ("data.random_start=true", "data.max_num_frames=5")

    def send() -> None:
        wait_until(lambda: len(entries("latents")) >= 3, "three entries")
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    assert command(*views, "args.cache_views=500") == 75
    sender.join()
    assert (
        "interrupted (SIGTERM); what was finished is in the cache; the same command goes on" in capfd.readouterr().err
    )
    begun = len(entries("latents"))
    assert 3 <= begun < 3000 and not list((tmp_path / "cache").glob("**/*.partial"))
    assert command(*views, "args.cache_views=3") == 0
    assert len(entries("latents")) >= 18
    assert command(*views, "args.cache_views=3", "--verify", "18") == 0
    assert not list((tmp_path / "cache" / "claims").iterdir())


def test_what_is_missing_on_the_command_line(command: Callable[..., int], capfd: Any) -> None:
    assert command("args.cache=null") == 2
    assert "args.cache: missing: say in which folder the cache is" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="--verify some: give the number of entries"):
        read_options(["--verify", "some"])
    options, rest = read_options(["--base", "a.yaml", "--prune", "--yes", "args.cache=c"])
    assert options.prune and options.yes and rest == ["--base", "a.yaml", "args.cache=c"]
