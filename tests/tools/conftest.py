"""One set of tiny checkpoints for all tests of the tools; they only read it."""

from __future__ import annotations

import pytest
from tiny_checkpoints import Checkpoints, write_checkpoints


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))
