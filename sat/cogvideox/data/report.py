"""One report on the data before training: what was found, what is wrong with it, and what follows from
that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cogvideox.errors import DataError

# In the order in which they are listed.
KINDS = (
    "missing caption",
    "ambiguous caption",
    "unreadable caption",
    "unreadable video",
    "unreadable image",
    "too short",
    "padded",
    "empty caption",
    "long caption",
    "multi-line caption",
    "slow source",
    "image among clips",
    "caption without video",
)
EFFECTS = ("error", "left out", "kept")


def shown(text: str) -> str:
    """A path as it can be printed, whatever its bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Problem:
    """Something about one item: its kind, the file, the reason, and whether it stops training, is left out or
    is kept.
    """

    kind: str
    path: str
    reason: str
    effect: str = "error"

    def __post_init__(self) -> None:
        assert self.kind in KINDS and self.effect in EFFECTS, (self.kind, self.effect)


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of some numbers."""

    smallest: float
    mean: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(min(values), sum(values) / len(values), max(values)) if values else None

    def __str__(self) -> str:
        return f"{self.smallest:.2f} to {self.largest:.2f}, mean {self.mean:.2f}"


@dataclass(frozen=True)
class SourceReport:
    """What the data folders hold.

    Args:
        roots: the folders.
        num_videos: video files found, and images where they count.
        num_samples: of these, usable for training.
        problems: everything there is to say about single items.
        source_fps, effective_fps: frames per second of the usable files, and of what is trained against the
            files' clocks (frames per second of source time: below the configured rate would be slow motion).
        max_failed_share: share of the videos that may be unreadable.
        noun: what the files are.
    """

    roots: tuple[str, ...]
    num_videos: int
    num_samples: int
    problems: tuple[Problem, ...]
    source_fps: Spread | None
    effective_fps: Spread | None
    max_failed_share: float
    noun: str = "videos"

    def of_kind(self, kind: str) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind == kind]

    @property
    def num_unreadable(self) -> int:
        return len(self.of_kind("unreadable video")) + len(self.of_kind("unreadable image"))

    def text(self, limit: int | None = 20) -> str:
        """For people to read: totals, then every item by kind, at most `limit` of a kind (None: all)."""
        roots = ", ".join(map(shown, self.roots))
        lines = [f"data: {self.num_samples} of {self.num_videos} {self.noun} usable, from {roots}"]
        if self.source_fps and self.effective_fps:
            lines.append(f"  source fps {self.source_fps}; effective fps {self.effective_fps}")
        for kind in KINDS:
            found = self.of_kind(kind)
            if not found:
                continue
            effects = sorted({problem.effect for problem in found}, key=EFFECTS.index)
            lines.append(f"  {kind}: {len(found)} ({', '.join(effects)})")
            lines += [f"    {shown(problem.path)}: {problem.reason}" for problem in found[:limit]]
            if limit is not None and len(found) > limit:
                lines.append(f"    and {len(found) - limit} more")
        return "\n".join(lines)

    def check(self) -> None:
        """Refuse data that can't be trained on.

        Raises:
            DataError: with the whole report, if any problem is an error, too many videos are unreadable, or
                none is left.
        """
        errors = [problem for problem in self.problems if problem.effect == "error"]
        if errors:
            first = errors[0]
            raise DataError(
                f"{len(errors)} of {self.num_videos} {self.noun} can't be used, "
                f"the first is {shown(first.path)}: {first.reason}\n"
                f"{self.text()}\n{_remedies({problem.kind for problem in errors})}"
            )
        if self.num_unreadable > self.max_failed_share * self.num_videos:
            raise DataError(
                f"{self.num_unreadable} of {self.num_videos} {self.noun} can't be read, more than "
                f"max_failed_share={self.max_failed_share:g} allows\n{self.text()}"
            )
        if not self.num_samples:
            raise DataError(f"none of the {self.noun} is usable\n{self.text()}")


def _remedies(kinds: set[str]) -> str:
    remedies = {
        "missing caption": "write the captions, or set data.missing_captions=empty to train without",
        "ambiguous caption": "keep one caption file per video",
        "unreadable caption": "save the captions as UTF-8",
        "too short": "set data.short_clips=skip to leave these clips out or =pad to repeat their last frame; "
        "lower data.max_num_frames if all are meant to be this long",
    }
    return "\n".join(f"what to do: {remedies[kind]}" for kind in KINDS if kind in kinds and kind in remedies)
