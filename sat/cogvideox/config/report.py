"""All problems of a configuration in one report, each with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from cogvideox.config.familiar_words import meant
from cogvideox.config.schema import Kind
from cogvideox.errors import ConfigError
from cogvideox.user_files import cut, shown

_LONGEST = 100  # characters of a name that are compared with the known ones


@dataclass(frozen=True)
class Origin:
    """Where a key was written. file: None for the command line, "" for nowhere. layer: higher ones win."""

    file: str | None
    line: int | None
    path: str
    layer: int = 0

    def place(self) -> str:
        if self.file is None:
            return "command line"
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Report:
    """Collects what is wrong (errors), what is doubtful (warnings) and what should be known (notices).

    kind: of the run, where it is known; words from other trainers are then explained.
    """

    def __init__(self, allow_unknown: bool = False, kind: Kind | None = None) -> None:
        self.allow_unknown, self.kind = allow_unknown, kind
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.notices: list[str] = []
        # Keys that a file marks with `???`, to be given by a later file or on the command line.
        self.unfilled: dict[str, Origin] = {}
        self._order: list[tuple[str, int, int]] = []

    def error(self, origin: Origin, text: str) -> None:
        line = _located(origin, text)
        if line not in self.errors:
            self._order.append((origin.file or "~", origin.line or 0, len(self.errors)))
            self.errors.append(line)

    def warn(self, origin: Origin, text: str) -> None:
        self._once(self.warnings, _located(origin, text))

    def notice(self, text: str) -> None:
        self._once(self.notices, text)

    def unknown(self, origin: Origin, name: str, valid: Iterable[str], what: str = "key") -> None:
        """An unknown name: an error, or a warning with `--allow-unknown`."""
        text = f"unknown {what} {shown(name)}; {meant(name, self.kind) or suggestion(name, valid)}"
        if self.allow_unknown:
            self.warn(origin, f"{text}; ignored (--allow-unknown)")
        else:
            self.error(origin, text)

    def raise_if_any(self) -> None:
        """Raises: ConfigError: with every problem found, in the order of the files and lines."""
        if not self.errors:
            return
        ordered = [self.errors[index] for _, _, index in sorted(self._order)]
        if len(ordered) == 1:
            raise ConfigError(ordered[0])
        raise ConfigError(f"{len(ordered)} problems in the configuration:\n" + "\n".join(f"  {x}" for x in ordered))

    @staticmethod
    def _once(lines: list[str], text: str) -> None:
        if text not in lines:
            lines.append(text)


def suggestion(name: str, valid: Iterable[str]) -> str:
    """`did you mean X?` or, when nothing is near, what there is."""
    names = sorted(set(valid))
    near = difflib.get_close_matches(name[:_LONGEST], names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return "nothing is allowed here"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known here: {shown}"


def _located(origin: Origin, text: str) -> str:
    return ": ".join(part for part in (origin.place(), cut(origin.path), text) if part)
