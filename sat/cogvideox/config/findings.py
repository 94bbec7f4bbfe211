"""Problems reported at the place where a key was written."""

from __future__ import annotations

from typing import Protocol

from cogvideox.config.report import Origin, Report
from cogvideox.config.tree import Node, find
from cogvideox.errors import ConfigError


class Reporter(Protocol):
    """Takes what is wrong with a configuration."""

    def error(self, path: str, text: str) -> None:
        """path: of the key, dotted; text: what is wrong with it and what would be valid."""


class Refusal:
    """For who reads a configuration that was checked: whatever is wrong is an error."""

    def error(self, path: str, text: str) -> None:
        """Raises: ConfigError."""
        raise ConfigError(f"{path}: {text}")


class Findings:
    """A report with the merged tree: callers name a key by its dotted path.

    partial: the files are only a part of a configuration, so defaults say nothing.
    """

    def __init__(self, root: Node, report: Report, *, partial: bool) -> None:
        self.root, self.report, self.partial = root, report, partial

    def error(self, path: str, text: str) -> None:
        """At the key, or at its path when the value is a default."""
        node = find(self.root, path)
        if node is not None:
            self.report.error(node.origin, text)
        elif not self.partial:
            self.report.error(Origin("", None, path), text)

    def warn(self, path: str, text: str) -> None:
        node = find(self.root, path)
        self.report.warn(Origin("", None, path) if node is None else node.origin, text)

    def equal(self, path: str, value: int, other: str, expected: int) -> None:
        if value != expected:
            self.error(path, f"{value} differs from {other}, {expected}")
