"""All figures of the page as plain values: what the JSON holds, and what the page is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cogvideox.data.listing import held_out_count
from cogvideox.data.report import Spread, shown
from cogvideox.data.survey import Survey
from cogvideox.doctor.clips import Clip, clips_of, names_of, row_of
from cogvideox.doctor.findings import Finding, findings_of
from cogvideox.doctor.histograms import histogram, most_common
from cogvideox.doctor.look import Look, Part
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
        "parts": [_part(part, [clip for clip in clips if clip.part == part.name], look) for part in look.parts],
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


def _part(part: Part, clips: Sequence[Clip], look: Look) -> dict[str, Any]:
    report, samples = part.found.listed.report, part.found.listed.samples
    surveys = [clip.survey for clip in clips if clip.survey is not None]
    used = [survey for survey in surveys if survey.is_usable]
    captions = {caption for clip in clips for caption in clip.captions}
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
        "buckets": _buckets(part, look),
        "training": _training(part, look),
        "cache": _cache(part, captions, look),
    }


def _histograms(
    clips: Sequence[Clip], surveys: Sequence[Survey], used: Sequence[Survey], look: Look
) -> dict[str, dict[str, Any]]:
    captions = [caption for clip in clips for caption in clip.captions]
    found = {
        "Frames per second": ([survey.source_fps for survey in surveys if survey.source_fps], "frames per second"),
        "Length": ([survey.duration_s for survey in surveys], "seconds"),
        "Aspect ratio": ([survey.width / survey.height for survey in surveys], "width to height"),
        "Effective frames per second": (
            [survey.effective_fps for survey in used if survey.effective_fps],
            "per second",
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


def _buckets(part: Part, look: Look) -> list[dict[str, Any]]:
    subject, report = look.subject, part.found.listed.report
    counts = _samples_per_epoch(part)
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
                "cache_bytes": info.num_samples * subject.moment_bytes(info.bucket),
            }
        )
    return found


def _samples_per_epoch(part: Part) -> dict[Bucket, float]:
    """How many samples of each bucket an epoch has, with the repeats of their sources."""
    samples, report, plan = part.found.listed
    if not len(samples):
        return {}
    repeats = np.array([source.repeats for source in report.sources])
    weights = repeats[np.asarray(samples.column("source"), dtype=np.int64)]
    numbers = np.zeros(len(samples), np.int64) if plan.numbers is None else plan.numbers
    found = np.bincount(numbers, weights=weights, minlength=len(plan.shapes)).tolist()
    return dict(zip(plan.shapes, found, strict=True))


def _training(part: Part, look: Look) -> dict[str, Any]:
    """An epoch and its steps; of train_data alone, and without what eval_split holds out."""
    subject = look.subject
    if part.name != "train_data":
        return {}
    counts = _samples_per_epoch(part)
    steps = sum(count / subject.batch_size(bucket) for bucket, count in counts.items())
    held_out, files = 0, len(set(part.found.listed.samples.file_numbers().tolist())) if counts else 0
    if subject.args.eval_split > 0 and not subject.args.valid_data and files > 1:
        try:
            held_out = held_out_count(files, subject.args.eval_split)
        except DataError:
            held_out = 0
    share = 1 - held_out / files if files else 1.0
    steps_per_epoch = max(1, math.ceil(steps * share)) if counts else 0
    return {
        "samples_per_epoch": round(sum(counts.values()) * share),
        "held_out": held_out,
        "steps_per_epoch": steps_per_epoch,
        "steps": subject.args.train_iters,
        "epochs": round(subject.args.train_iters / steps_per_epoch, 1) if steps_per_epoch else 0.0,
    }


def _cache(part: Part, captions: set[str], look: Look) -> dict[str, Any]:
    """Bytes of a cache that holds a view of every sample, and every caption once."""
    subject, (samples, _, plan) = look.subject, part.found.listed
    moments = sum(count * subject.moment_bytes(bucket) for bucket, count in plan.counts(len(samples)).items())
    limit = subject.text_limit
    contexts = sum(subject.context_bytes(look.tokens.get(caption, limit)) for caption in captions)
    return {
        "moments_bytes": moments,
        "contexts_bytes": contexts,
        "bytes": moments + contexts,
        "bytes_per_number": subject.bytes_per_number,
        "contexts_at_most": not look.tokens,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    spread = Spread.of(values)
    return None if spread is None else _spread_of(spread)


def _spread_of(spread: Spread) -> dict[str, float]:
    return {name: round(getattr(spread, name), 4) for name in ("smallest", "mean", "largest")}
