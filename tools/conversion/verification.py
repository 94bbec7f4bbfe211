"""What a failed --verify leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cogvideox.errors import CheckpointError


def naming_result(folder: Path, verify: Callable[[], None]) -> None:
    """Run a verification. Raises: CheckpointError that also says what becomes of the result, which looks finished."""
    try:
        verify()
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {folder} stays as evidence: don't use it, and remove it") from error
