"""What a failed --verify leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cogvideox.errors import CheckpointError


def naming_result(folder: Path, verify: Callable[[], None]) -> None:
    """Run a verification. Raises: CheckpointError that also says what becomes of the result, which looks finished."""
    _quiet_diffusers()
    try:
        verify()
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {folder} stays as evidence: don't use it, and remove it") from error


def _quiet_diffusers() -> None:
    """Its notices and bars say nothing about the result."""
    from diffusers.utils import logging as their_logging

    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
