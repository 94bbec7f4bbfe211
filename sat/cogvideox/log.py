"""Logging for scripts and library: one logger tree, one format, quiet on all ranks but the first."""

from __future__ import annotations

import logging
import os

_ROOT = "cogvideox"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(level: str = "INFO", rank: int | None = None) -> None:
    """Send messages of this package to stderr. Ranks other than 0 show warnings and errors only, with their rank."""
    rank = int(os.environ.get("RANK") or 0) if rank is None else rank
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level if rank == 0 else max(logging.WARNING, logging.getLevelName(level)))
    logger.propagate = False
    handler = logging.StreamHandler()
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]
