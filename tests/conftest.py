"""What tests in several rooms share: tiny families, made when they are first asked for and only read."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import tiny
from hypothesis import settings

# The same examples in every run: whether a change passes must not depend on luck.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# `nohup`, and a shell's `&`, leave these ignored, also for the programs that tests start and interrupt.
for _ignored, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_ignored) is signal.SIG_IGN:
        signal.signal(_ignored, _usual)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Headers of clips are remembered here, and not in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> tiny.FamilyOf:
    """A tiny family without clips, by name."""
    made: dict[str, tiny.TinyFamily] = {}

    def get(name: str) -> tiny.TinyFamily:
        if name not in made:
            with tiny.quiet():
                made[name] = tiny.write_family(tmp_path_factory.mktemp(name), num_clips=0, family=name)
        return made[name]

    return get
