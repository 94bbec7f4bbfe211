"""What a run writes beside its checkpoints: a full disk there must not end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cogvideox.errors import UserError
from cogvideox.log import get_logger

_T = TypeVar("_T")
_log = get_logger(__name__)


class OptionalOutput:
    """Writes what can be done without; what fails is warned of once for each kind, and the run goes on."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def write(self, what: str, action: Callable[[], _T]) -> _T | None:
        """Run `action`; its result, or None when the disk refused. what: for the warning, e.g. `summary.json`."""
        try:
            return action()
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if what not in self._warned:
                _log.warning("%s can't be written (%s): the run goes on without it", what, reason)
            self._warned.add(what)
            return None
