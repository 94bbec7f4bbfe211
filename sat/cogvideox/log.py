"""Logging for scripts and library: one logger tree, one format, quiet on all ranks but the first.

The terminal gets this package's messages. DEBUG, and what libraries say below an error, goes to the run's log file.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ROOT = "cogvideox"
# Loggers of libraries that print by themselves from the moment they are imported.
_TALKATIVE = ("DeepSpeed", "sat")
_FILE_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(level: str = "INFO", rank: int | None = None, *, keep: bool = False) -> None:
    """Send messages of this package to stderr. Ranks other than 0 show warnings and errors only, with their rank.

    Libraries' messages below ERROR don't show, unless level is DEBUG. keep: remember everything until `log_file` has
    a file for it.
    """
    rank = int(os.environ.get("RANK") or 0) if rank is None else rank
    handler = logging.StreamHandler()
    handler.setLevel(level if rank == 0 else max(logging.WARNING, logging.getLevelName(level)))
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger(_ROOT)
    logger.setLevel(logging.DEBUG)
    logger.handlers[:] = [handler]
    root = logging.getLogger()
    if keep and not any(isinstance(each, _Memory) for each in root.handlers):
        root.addHandler(_Memory())
    elif not root.handlers:  # without one, Python prints the warnings of libraries that have no handler of their own
        root.addHandler(logging.NullHandler())
    logging.captureWarnings(level != "DEBUG")
    for name in _TALKATIVE:
        logging.getLogger(name).filters[:] = [] if level == "DEBUG" else [_to_file]


@contextmanager
def log_file(folder: Path, rank: int) -> Iterator[None]:
    """Everything that is logged in the block goes to `<folder>/run.log`, and what `setup_logging` has kept before.

    Other ranks than 0 write `run-rank-<n>.log`. An exception that ends the block is written with its traceback. A file
    that can't be written is said once and never ends the block.
    """
    root = logging.getLogger()
    memory = [handler for handler in root.handlers if isinstance(handler, _Memory)]
    handler = _open(folder / ("run.log" if rank == 0 else f"run-rank-{rank}.log"))
    for each in memory:
        root.removeHandler(each)
        each.hand_over(handler)
    root.addHandler(handler)
    try:
        yield
    except BaseException as error:
        said = f"ended by {type(error).__name__}: {error}"
        is_error = isinstance(error, Exception)  # a request to stop is none
        level, trace = (logging.ERROR, sys.exc_info()) if is_error else (logging.INFO, None)
        handler.handle(logging.LogRecord(_ROOT, level, __file__, 0, said, None, trace))
        raise
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # of a full disk, which has been said
            handler.close()


def amount(num_bytes: int) -> str:
    """Bytes for people: `512 B`, `3.1 MB`, `9.5 GB` (powers of 1,000, as disks and downloads count)."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


class _Memory(logging.handlers.BufferingHandler):
    """Remembers records until there is a file."""

    def __init__(self) -> None:
        super().__init__(capacity=sys.maxsize)

    def hand_over(self, target: logging.Handler) -> None:
        for record in self.buffer:
            target.handle(record)
        self.close()


class _File(logging.FileHandler):
    """A log file that may fail: a full disk is said once, and ends nothing."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            print(f"warning: {self.baseFilename} can't be written any more: {sys.exc_info()[1]}", file=sys.stderr)


def _open(file: Path) -> logging.Handler:
    try:
        handler = _File(file, encoding="utf-8")
    except OSError as error:
        get_logger(__name__).warning("no log file: %s can't be written: %s", file, error.strerror)
        return logging.NullHandler()
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    return handler


def _to_file(record: logging.LogRecord) -> bool:
    """A filter: everything goes to the log file, and only an error passes on to the library's own handler."""
    logging.getLogger().handle(record)
    return record.levelno >= logging.ERROR
