"""All figures of the page as plain values: what the JSON holds, and what the page is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogvideox.data.held_out import held_out
from cogvideox.data.report import Spread, shown
from cogvideox.data.survey import Survey
from cogvideox.doctor.cache_size import entries_of, sizes
from cogvideox.doctor.clips import Clip, clips_of, names_of, row_of
from cogvideox.doctor.findings import Finding, findings_of
from cogvideox.doctor.histograms import histogram, most_common
from cogvideox.doctor.look import Look, Part
from cogvideox.doctor.subject import Subject
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket

FORMAT = 1


def facts_of(look: Look) -> dict[str, Any]:
    """Everything; the key `clips` has a row for each clip."""
    clips = clips_of(look)
    findings = findings_of(look, clips)
    roots = {
        (part.name, number): source.path
        for part in look.parts
        for number, source in enumerate(part.found.listed.report.sources)
    }
    names = names_of(clips, roots)
    return {
        "format": FORMAT,
        "command": list(look.subject.words),
        "settings": _settings(look),
        "verdict": verdict(look),
        "parts": _parts(clips, look),
        "findings": [_finding(finding, names) for finding in findings],
        "clips": [row_of(clip, look, names[clip.number]) for clip in clips],
    }


def verdict(look: Look) -> str:
    """Why training would refuse this data; "" where it would not."""
    for part in look.parts:
        try:
            part.found.listed.report.check()
        except DataError as error:
            return shown(str(error).split("\n")[0])
    return ""


def _settings(look: Look) -> dict[str, Any]:
    subject = look.subject
    data = subject.data
    names = ("fps", "max_num_frames", "frame_stride", "short_clips", "windows", "scene_cuts", "captions", "reader")
    return {
        **{name: getattr(data, name) for name in names},
        "video_size": list(data.video_size),
        "text_limit": subject.text_limit,
        "processes": subject.processes,
        "tokens_counted": bool(look.tokens),
        "why_no_tokens": shown(look.why_no_tokens),
        "pictures_taken": look.has_pictures,
    }


def _finding(finding: Finding, names: dict[int, str]) -> dict[str, Any]:
    items = [
        {"clip": item.number, "name": names.get(item.number or 0, item.label), "reason": item.reason}
        for item in finding.items
    ]
    return {
        "kind": finding.kind,
        "effect": finding.effect,
        "advice": finding.advice,
        "count": len(items),
        "items": items,
    }


def _parts(clips: Sequence[Clip], look: Look) -> list[dict[str, Any]]:
    counted: set[str] = set()  # captions of the parts before, which a cache has once
    found = []
    for part in look.parts:
        captions = set(part.found.listed.samples.captions()) - counted
        counted |= captions
        found.append(_part(part, [clip for clip in clips if clip.part == part.name], captions, look))
    return found


def _part(part: Part, clips: Sequence[Clip], new_captions: set[str], look: Look) -> dict[str, Any]:
    report, samples = part.found.listed.report, part.found.listed.samples
    surveys = [clip.survey for clip in clips if clip.survey is not None]
    used = [survey for survey in surveys if survey.is_usable]
    captions = {caption for clip in clips for caption in clip.captions}
    is_held = _held_out(part, look.subject)
    entries = entries_of(part, is_held, look.subject)
    return {
        "name": part.name,
        "found": len(clips),
        "used": len(used),
        "left_out": report.num_videos - len(used),
        "videos": report.num_videos,
        "samples": len(samples),
        "seconds": round(sum(survey.duration_s for survey in surveys), 1),
        "captions": len(captions),
        "sources": [
            {
                "path": shown(source.path),
                "layout": source.layout,
                "repeats": round(source.repeats, 4),
                "used": source.num_samples,
                "videos": source.num_videos,
            }
            for source in report.sources
        ],
        "spreads": {
            "source_fps": _spread([survey.source_fps for survey in used if survey.source_fps]),
            "effective_fps": _spread([survey.effective_fps for survey in used if survey.effective_fps]),
        },
        "histograms": _histograms(clips, surveys, used, look),
        "buckets": _buckets(part, is_held, entries, look),
        "training": _training(part, is_held, look),
        "cache": sizes(entries, new_captions, look.subject),
    }


def _histograms(
    clips: Sequence[Clip], surveys: Sequence[Survey], used: Sequence[Survey], look: Look
) -> dict[str, dict[str, Any]]:
    captions = [caption for clip in clips for caption in clip.captions]
    found = {
        "Frame rate": ([survey.source_fps for survey in surveys if survey.source_fps], "frames per second"),
        "Length": ([survey.duration_s for survey in surveys], "seconds"),
        "Aspect ratio": ([survey.width / survey.height for survey in surveys], "width to height"),
        "Effective frame rate": (
            [survey.effective_fps for survey in used if survey.effective_fps],
            "frames per second",
        ),
        "Picture kept by the crop": ([100 * survey.kept_share for survey in used], "percent of its area"),
    }
    if look.tokens:
        found["Caption length"] = ([float(look.tokens[caption]) for caption in captions], "tokens")
    else:
        found["Caption length"] = ([float(len(caption.split())) for caption in captions], "words")
    bars = {name: histogram(values, unit) for name, (values, unit) in found.items() if values}
    if surveys:
        sizes = [f"{survey.width}x{survey.height}" for survey in surveys]
        bars["Size"] = most_common(sizes, "width x height in pixels")
    return bars


def _buckets(part: Part, is_held: NDArray[np.bool_], entries: Mapping[Bucket, int], look: Look) -> list[dict[str, Any]]:
    subject, report = look.subject, part.found.listed.report
    counts = _samples_per_epoch(part, is_held)
    found = []
    for info in report.buckets:
        batch = subject.batch_size(info.bucket)
        found.append(
            {
                "bucket": str(info.bucket),
                "clips": info.num_files,
                "samples": info.num_samples,
                "kept": _spread_of(info.kept_share),
                "enlarged": _spread_of(info.enlargement),
                "padding": round(info.num_padded / (info.num_files * info.bucket.frames), 4),
                "tokens": subject.spec.geometry.num_video_tokens(*info.bucket),
                "batch": batch,
                "steps": round(counts.get(info.bucket, 0.0) / batch, 2),
                "cache_bytes": entries[info.bucket] * subject.layout.num_bytes(info.bucket, subject.moment_bytes),
            }
        )
    return found


def _held_out(part: Part, subject: Subject) -> NDArray[np.bool_]:
    """bool [n], which samples are evaluated on: all of valid_data, and what eval_split takes of train_data."""
    samples, share = part.found.listed.samples, subject.args.eval_split
    if part.name != "train_data":
        return np.ones(len(samples), bool)
    if share > 0 and not subject.args.valid_data and len(samples):
        try:
            return held_out(samples, samples.sample_ids(), share)
        except DataError:  # too few clips to hold one out; training says so
            pass
    return np.zeros(len(samples), bool)


def _samples_per_epoch(part: Part, is_held: NDArray[np.bool_]) -> dict[Bucket, float]:
    """Samples of each bucket in an epoch of training, with the repeats of their sources; none of valid_data."""
    samples, report, plan = part.found.listed
    if not len(samples):
        return {}
    repeats = np.array([source.repeats for source in report.sources])
    weights = repeats[np.asarray(samples.column("source"), dtype=np.int64)] * ~is_held
    numbers = np.zeros(len(samples), np.int64) if plan.numbers is None else plan.numbers
    found = np.bincount(numbers, weights=weights, minlength=len(plan.shapes)).tolist()
    return dict(zip(plan.shapes, found, strict=True))


def _training(part: Part, is_held: NDArray[np.bool_], look: Look) -> dict[str, Any]:
    """An epoch and its steps; of train_data alone, and without what eval_split holds out."""
    subject, samples = look.subject, part.found.listed.samples
    if part.name != "train_data":
        return {}
    counts = _samples_per_epoch(part, is_held)
    steps = math.ceil(sum(count / subject.batch_size(bucket) for bucket, count in counts.items()))
    return {
        "samples_per_epoch": round(sum(counts.values())),
        "held_out": len(np.unique(samples.file_numbers()[is_held])),
        "steps_per_epoch": steps,
        "steps": subject.args.train_iters,
        "epochs": round(subject.args.train_iters / steps, 1) if steps else 0.0,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    spread = Spread.of(values)
    return None if spread is None else _spread_of(spread)


def _spread_of(spread: Spread) -> dict[str, float]:
    return {name: round(getattr(spread, name), 4) for name in ("smallest", "mean", "largest")}
