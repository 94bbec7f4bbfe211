"""What tests in several rooms share: tiny families, made when they are first asked for and only read."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import settings

# The same examples in every run: whether a change passes must not depend on luck.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> tiny.FamilyOf:
    """A tiny family without clips, by name."""
    made: dict[str, tiny.TinyFamily] = {}

    def get(name: str) -> tiny.TinyFamily:
        if name not in made:
            made[name] = tiny.write_family(tmp_path_factory.mktemp(name), num_clips=0, family=name)
        return made[name]

    return get
