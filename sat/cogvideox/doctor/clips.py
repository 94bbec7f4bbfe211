"""What the page says of each clip: a row of plain values, of which the JSON holds all and the page most."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cogvideox.data.media import Media
from cogvideox.data.report import shown
from cogvideox.data.survey import Failure, Survey
from cogvideox.doctor.look import Look, Part

_MOST_CAPTION = 300  # characters


@dataclass(eq=False)
class Clip:
    """A row of the page.

    Args:
        number: from 1, over all parts; part: "train_data" or "valid_data"; source: number of its entry in the part.
        media, captions: of its sample.
        survey: what its file will give, or None.
        why_not: why it isn't used; "" where it is.
        kinds: of what there is to say about it.
    """

    number: int
    part: str
    source: int
    media: Media
    captions: tuple[str, ...]
    survey: Survey | None
    why_not: str
    is_looked_at: bool
    kinds: list[str] = field(default_factory=list)

    @property
    def is_used(self) -> bool:
        return self.survey is not None and self.survey.is_usable

    @property
    def label(self) -> str:
        """As it can be printed, whatever the bytes of its name."""
        return shown(self.media.label)


def clips_of(look: Look) -> list[Clip]:
    """All clips, in order."""
    return [clip for part in look.parts for clip in _of_part(part)]


def _of_part(part: Part) -> Iterator[Clip]:
    for place, (sample, outcome) in enumerate(zip(part.found.samples, part.found.outcomes, strict=True)):
        survey = outcome if isinstance(outcome, Survey) else None
        why_not = ""
        if isinstance(outcome, Failure):
            why_not = outcome.reason.removeprefix(f"{sample.media.label}: ")
        elif survey is not None:
            why_not = survey.too_short or survey.too_small or ""
        yield Clip(
            part.first + place,
            part.name,
            sample.source,
            sample.media,
            sample.captions,
            survey,
            shown(why_not),
            outcome is not None,
        )


def names_of(clips: list[Clip], roots: dict[tuple[str, int], str]) -> dict[int, str]:
    """What each clip is called on the page: its path without that of its entry."""
    names = {}
    for clip in clips:
        root = os.path.normpath(roots.get((clip.part, clip.source), "."))
        folder = root if os.path.isdir(root) else os.path.dirname(root)
        names[clip.number] = shown(os.path.normpath(clip.media.label)).removeprefix(f"{shown(folder)}/")
    return names


def row_of(clip: Clip, look: Look, name: str) -> dict[str, Any]:
    """A clip in JSON; what isn't known is null."""
    survey, pictures = clip.survey, look.pictures.get(clip.media)
    caption = clip.captions[0]
    row: dict[str, Any] = {
        "number": clip.number,
        "part": clip.part,
        "source": clip.source,
        "name": name,
        "path": clip.label,
        "status": "used" if clip.is_used else "left out" if clip.is_looked_at else "not looked at",
        "why": clip.why_not,
        "caption": caption if len(caption) <= _MOST_CAPTION else caption[: _MOST_CAPTION - 1] + "…",
        "captions": len(clip.captions),
        "characters": max(map(len, clip.captions)),
        "words": max(len(each.split()) for each in clip.captions),
        "tokens": max((look.tokens[each] for each in clip.captions), default=None) if look.tokens else None,
        "findings": clip.kinds,
    }
    figures: dict[str, Any] = dict.fromkeys(
        ("width", "height", "fps", "seconds", "frames", "aspect", "bucket", "kept", "enlarged", "effective_fps")
    )
    figures |= dict.fromkeys(("padded", "repeated", "windows", "brightness", "motion"))
    if survey is not None:
        figures |= {
            "width": survey.width,
            "height": survey.height,
            "fps": round(survey.source_fps, 3),
            "seconds": round(survey.duration_s, 3),
            "frames": round(survey.source_fps * survey.duration_s) + 1,
            "aspect": round(survey.width / survey.height, 3),
        }
    if survey is not None and survey.is_usable:
        figures |= {
            "bucket": str(survey.buckets[0]),
            "kept": round(survey.kept_share, 4),
            "enlarged": round(survey.enlargement, 3),
            "effective_fps": round(survey.effective_fps, 3),
            "padded": survey.num_padded,
            "repeated": survey.num_repeated,
            "windows": survey.num_windows,
        }
    if pictures is not None and not isinstance(pictures, Failure):
        figures |= {"brightness": round(pictures.brightness, 2), "motion": round(pictures.motion, 3)}
    return row | figures
