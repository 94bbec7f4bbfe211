"""What there is to say about clips and captions: the report's problems, and what only pictures and captions show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cogvideox.data.listing import trained_and_held_out
from cogvideox.data.report import EFFECTS, KINDS, Problem, shown, what_to_do
from cogvideox.data.survey import Failure
from cogvideox.doctor.clips import Clip
from cogvideox.doctor.look import Look
from cogvideox.doctor.similar import near_duplicates

if TYPE_CHECKING:
    from cogvideox.doctor.pictures import Pictures

BLACK = 16.0  # of 255: brightness and contrast below which a picture shows nothing
STILL = 0.35  # of 255: mean difference of frames below which nothing moves; noise of encoding is about a tenth of it
_KINDS = (*KINDS, "damaged frames", "near duplicate", "one colour", "static", "duplicate caption")
_ADVICE = {
    "damaged frames": "training leaves them out when it meets them; encode them again, or take them away",
    "near duplicate": "the same motion counts twice; keep one of each group, or keep both on purpose",
    "one colour": "they teach nothing but an empty picture; take them out",
    "static": "they teach the model not to move; take them out, or keep few",
    "duplicate caption": "the model can't learn from it how these clips differ; describe each of them",
    "long caption": "what stands behind the limit is not read; put what matters first, or write less",
    "empty caption": "they are trained without a caption; write one if they are to be asked for",
}


@dataclass(frozen=True)
class Item:
    """One of the things that a finding names. number: of the clip, None where it isn't one of the page."""

    label: str
    reason: str
    number: int | None = None
    badness: float = 0.0


@dataclass(frozen=True)
class Finding:
    """All of one kind. effect: "error" stops training, "left out", or "kept"."""

    kind: str
    effect: str
    advice: str
    items: tuple[Item, ...]


def findings_of(look: Look, clips: Sequence[Clip]) -> list[Finding]:
    """What there is to say, the worst first. Each clip gets the kinds that it is named for."""
    by_kind: dict[str, list[tuple[str, Item]]] = {}

    def add(kind: str, effect: str, item: Item) -> None:
        by_kind.setdefault(kind, []).append((effect, item))

    numbers: dict[tuple[str, str], int] = {}
    for clip in clips:
        numbers.setdefault((clip.part, clip.media.label), clip.number)
    remedies: dict[str, str] = {}
    for part in look.parts:
        remedies.update({kind: text for kind, text in part.found.listed.report.remedies.items() if text})
        for problem in part.found.listed.report.problems:
            add(problem.kind, problem.effect, _item(problem, part.name, numbers))
    for problem in _trained_and_held_out(look):
        add(problem.kind, problem.effect, _item(problem, "valid_data", numbers))
    named = {item.number for _, item in by_kind.get("held out and trained on", [])}
    for kind, effect, item in (*_of_captions(look, clips), *_of_pictures(look, clips)):
        if kind != "held out and trained on" or item.number not in named:
            add(kind, effect, item)
    findings = []
    for kind, found in by_kind.items():
        effects = sorted({effect for effect, _ in found}, key=EFFECTS.index)
        items = tuple(sorted((item for _, item in found), key=lambda each: -each.badness))
        findings.append(Finding(kind, effects[0], what_to_do(kind, effects, remedies) or _ADVICE.get(kind, ""), items))
    findings.sort(key=lambda each: (EFFECTS.index(each.effect), _KINDS.index(each.kind)))
    places = {clip.number: clip for clip in clips}
    for finding in findings:
        for number in dict.fromkeys(item.number for item in finding.items if item.number is not None):
            places[number].kinds.append(finding.kind)
    return findings


def _item(problem: Problem, part: str, numbers: dict[tuple[str, str], int]) -> Item:
    return Item(shown(problem.path), shown(problem.reason), numbers.get((part, problem.path)), badness=problem.badness)


def _trained_and_held_out(look: Look) -> list[Problem]:
    parts = {part.name: part.found.listed.samples for part in look.parts}
    if len(parts) < 2:
        return []
    return trained_and_held_out(parts["train_data"], parts["valid_data"])


def _of_captions(look: Look, clips: Sequence[Clip]) -> Iterable[tuple[str, str, Item]]:
    limit = look.subject.text_limit
    files: dict[tuple[str, str], dict[str, Clip]] = {}
    for clip in clips:
        for caption in clip.captions:
            if caption.strip():
                files.setdefault((clip.part, caption), {}).setdefault(clip.media.label, clip)
            tokens = look.tokens.get(caption, 0)
            if tokens > limit:
                reason = f"{tokens} tokens, the text encoder reads {limit}"
                yield "long caption", "kept", Item(clip.label, reason, clip.number, tokens)
    for (_, caption), members in files.items():
        if len(members) > 1:
            text = caption if len(caption) <= 60 else caption[:59] + "…"
            for clip in members.values():
                reason = f"{len(members)} clips have it: “{text}”"
                yield "duplicate caption", "kept", Item(clip.label, reason, clip.number, len(members))


def _of_pictures(look: Look, clips: Sequence[Clip]) -> Iterable[tuple[str, str, Item]]:
    seen: set[tuple[str, str]] = set()
    shows: list[tuple[Clip, Pictures]] = []
    for clip in clips:
        pictures = look.pictures.get(clip.media)
        if (clip.part, clip.media.label) in seen or pictures is None:
            continue
        seen.add((clip.part, clip.media.label))
        if isinstance(pictures, Failure):
            text = shown(pictures.reason.removeprefix(f"{clip.media.label}: "))
            yield "damaged frames", "left out", Item(clip.label, text, clip.number)
        else:
            if pictures.contrast < 2 or (pictures.brightness < BLACK and pictures.contrast < BLACK):
                what = "black" if pictures.brightness < BLACK else "of one colour"
                text = f"all frames that were looked at are {what}: brightness {pictures.brightness:.0f} of 255"
                yield "one colour", "kept", Item(clip.label, text, clip.number, 255 - pictures.brightness)
                continue
            if pictures.motion < STILL and clip.survey is not None and clip.survey.duration_s > 0:
                text = f"frames differ by {pictures.motion:.2f} of 255 at most"
                yield "static", "kept", Item(clip.label, text, clip.number, -pictures.motion)
            shows.append((clip, pictures))
    if len(shows) < 2:
        return
    hashes, colours = (np.stack([getattr(each, name) for _, each in shows]) for name in ("hash", "colours"))
    for group in near_duplicates(hashes, colours):
        first = shows[group[0]][0]
        for place in group[1:]:
            clip = shows[place][0]
            where = "" if first.part == clip.part else f" of {first.part}"
            text = f"shows the same as {first.label}{where} (clip {first.number})"
            kind = "near duplicate" if first.part == clip.part else "held out and trained on"
            yield kind, "kept", Item(clip.label, text, clip.number, 1.0)
