"""Problems reported at the place where a key was written."""

from __future__ import annotations

from cogvideox.config.report import Origin, Report
from cogvideox.config.tree import Node, find


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
