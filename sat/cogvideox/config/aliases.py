"""Published names."""

from __future__ import annotations

from cogvideox.config.report import Report
from cogvideox.config.tree import Node


def translate(root: Node, report: Report) -> bool:
    return False
