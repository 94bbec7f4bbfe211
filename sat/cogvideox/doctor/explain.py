"""One sample's whole way: its file, the frames that are taken, the crop, the bucket, and its captions.

Letters: t frames of the sample, h w pixels, c = 3 colours.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogvideox import commands
from cogvideox.config.targets import instantiate
from cogvideox.data.clips import ClipDecoder
from cogvideox.data.dataset import VideoDataset, split_held_out
from cogvideox.data.decode import VideoReader, open_reader
from cogvideox.data.listing import Found
from cogvideox.data.order import SampleOrder, hash_words, uniform
from cogvideox.data.plans import BatchShare, StreamPosition, training_plans
from cogvideox.data.report import shown
from cogvideox.data.sample import Sample, choose_caption
from cogvideox.data.survey import Failure, Survey, reader_for
from cogvideox.data.timing import ClipSpec, FrameChoice, Timestamps, frame_indices
from cogvideox.data.transforms import covering_size, fit_to_bucket
from cogvideox.diffusion.timesteps import draw_timesteps
from cogvideox.doctor.look import find, open_counter
from cogvideox.doctor.output import check_output, write_output
from cogvideox.doctor.page import FORMS, data_uri, render_template
from cogvideox.doctor.subject import Subject
from cogvideox.errors import CheckpointError, ConfigError, DataError
from cogvideox.geometry import Bucket

_SIDE, _SOURCE_SIDE = 176, 720  # of the pictures, their longer one
_MOST_NAMED = 5


def explain(
    subject: Subject,
    which: str,
    output: Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Say in words, and show on a page, what becomes of a sample.

    Args:
        which: the number of its clip on the page, or the name of its file; `name#2` is its second window.
        output: the page.

    Raises:
        ConfigError: for an unknown clip, or a page that can't be written.
        DataError: for a file that can't be decoded.
    """
    check_output(output, "--output", overwrite)
    reader = open_reader(subject.data.reader, subject.data.scene_cuts)
    name, place, window, founds = _find(subject, which, reader)
    found = founds[name]
    sample, outcome = found.samples[place], found.outcomes[place]
    number = 1 + place + (len(founds["train_data"].samples) if name != "train_data" else 0)
    facts: dict[str, Any] = {
        "number": number,
        "part": name,
        "source": shown(found.listed.report.sources[sample.source].path),
        "layout": found.listed.report.sources[sample.source].layout,
        "path": shown(sample.label),
        "captions": list(sample.captions),
        **_tokens(subject, sample),
        "why_not": "",
    }
    sheet: list[tuple[str, str]] = []
    source_picture = ""
    if isinstance(outcome, Failure):
        facts["why_not"] = shown(outcome.reason.removeprefix(f"{sample.label}: "))
    elif outcome is not None:
        facts |= _file_facts(outcome)
        facts["why_not"] = outcome.too_short or outcome.too_small or ""
    if isinstance(outcome, Survey) and outcome.is_usable:
        if window >= outcome.num_windows:
            raise ConfigError(f"--explain {which}: this clip gives {outcome.num_windows} window(s)")
        own_id = sample.sample_id if window == 0 else hash_words("window", sample.sample_id, window)
        sample = replace(sample, sample_id=own_id, window=window, cuts=tuple(outcome.cuts))
        more, sheet, source_picture = _way(subject, sample, outcome, reader)
        facts |= more | _first_epoch(subject, found, sample, name)
    text = render_template("explain.html.j2", facts, table=table_of(facts), sheet=sheet, source_picture=source_picture)
    for line in lines_of(facts):
        say(line)
    write_output(output, text)
    say(f"page: {commands.shown(output)}; open it in a browser")


def _find(subject: Subject, which: str, reader: VideoReader) -> tuple[str, int, int, dict[str, Found]]:
    """(part, place of the sample in it, window, all parts). Raises: ConfigError."""
    founds = {name: find(subject, name, reader) for name in subject.entries}
    parts = re.fullmatch(r"(.+)#(\d{1,9})", which)
    word, window = (parts[1], max(0, int(parts[2]) - 1)) if parts else (which, 0)
    total = sum(len(found.samples) for found in founds.values())
    if word.isdigit() and 1 <= int(word) <= total:
        place = int(word) - 1
        for name, found in founds.items():
            if place < len(found.samples):
                return name, place, window, founds
            place -= len(found.samples)
    places: list[tuple[str, int, str]] = [
        (name, place, media.label)
        for name, found in founds.items()
        for place, media in enumerate(found.samples.medias(0, len(found.samples)))
    ]
    full = os.path.abspath(word)
    matches = [each for each in places if each[2] in (word, full)] or [
        each for each in places if each[2].endswith((f"/{word}", f":{word}"))
    ]
    matches = matches or [each for each in places if os.path.splitext(os.path.basename(each[2]))[0] == word]
    if len({label for _, _, label in matches}) == 1:
        return matches[0][0], matches[0][1], window, founds
    if matches:
        some = ", ".join(shown(label) for _, _, label in matches[:_MOST_NAMED])
        raise ConfigError(f"--explain {word}: {len(matches)} clips have this name: {some}; give more of the path")
    names = sorted({os.path.basename(label.rsplit(":", 1)[-1]) for _, _, label in places})
    near = difflib.get_close_matches(os.path.basename(word), names, _MOST_NAMED, 0.4)
    hint = f"; near names: {', '.join(map(shown, near))}" if near else ""
    raise ConfigError(f"--explain {word}: there is no such clip; numbers go from 1 to {total}{hint}")


def _tokens(subject: Subject, sample: Sample) -> dict[str, Any]:
    try:
        count = open_counter(subject)
    except CheckpointError as error:
        return {"tokens": [], "why_no_tokens": shown(str(error)), "text_limit": subject.text_limit}
    return {"tokens": count(list(sample.captions)), "why_no_tokens": "", "text_limit": subject.text_limit}


def _file_facts(survey: Survey) -> dict[str, Any]:
    return {
        "width": survey.width,
        "height": survey.height,
        "fps": round(survey.source_fps, 3),
        "seconds": round(survey.duration_s, 3),
        "frames": round(survey.source_fps * survey.duration_s) + 1,
        "cuts": list(survey.cuts),
        "windows": survey.num_windows,
    }


def _way(
    subject: Subject, sample: Sample, survey: Survey, reader: VideoReader
) -> tuple[dict[str, Any], list[tuple[str, str]], str]:
    """Facts, (picture, what it is) of each frame, and the first frame as the file has it."""
    bucket, seed = survey.buckets[0], subject.args.seed
    spec = replace(subject.spec, max_num_frames=bucket.frames, video_size=(bucket.height, bucket.width))
    start = uniform(seed, 0, sample.sample_id, "start") if spec.random_start else 0.0
    times: list[Timestamps] = []

    def choose(timestamps: Timestamps) -> FrameChoice:
        times.append(timestamps)
        return frame_indices(timestamps, spec, start, sample.window, sample.cuts)

    decoded = reader_for(sample.media, reader).read(sample.media, choose)
    size = decoded.frames.shape[1:3]
    frames = fit_to_bucket(decoded.frames, (bucket.height, bucket.width)).permute(0, 2, 3, 1).numpy()
    indices = decoded.choice.indices.tolist()
    seconds = [round(float(times[-1][index]), 3) for index in indices]
    facts = {
        "bucket": str(bucket),
        "other_buckets": [str(each) for each in survey.buckets[1:]],
        "video_tokens": subject.spec.geometry.num_video_tokens(*bucket),
        "reader": decoded.reader,
        "window": sample.window + 1,
        "indices": indices,
        "times": seconds,
        "first_s": seconds[0],
        "last_s": seconds[-1],
        "effective_fps": round(decoded.choice.effective_fps, 3),
        "padded": decoded.choice.num_padded,
        "repeated": decoded.choice.num_repeated,
        "kept": round(survey.kept_share, 4),
        "enlarged": round(survey.enlargement, 3),
        "crop": crop_box((int(size[0]), int(size[1])), bucket),
        **_played(spec),
    }
    sheet = [
        (data_uri(_jpeg(frame, _SIDE)), f"frame {index}, {second:g} s")
        for frame, index, second in zip(frames, indices, seconds, strict=True)
    ]
    return facts, sheet, data_uri(_jpeg(decoded.frames[0], _SOURCE_SIDE))


def crop_box(size: tuple[int, int], bucket: Bucket) -> list[float]:
    """What the crop keeps of a picture of (height, width): [top, left, height, width] in its pixels."""
    covering = covering_size(size, (bucket.height, bucket.width))
    top, left = (covering[0] - bucket.height) // 2, (covering[1] - bucket.width) // 2
    per_pixel = (size[0] / covering[0], size[1] / covering[1])
    box = (top * per_pixel[0], left * per_pixel[1], bucket.height * per_pixel[0], bucket.width * per_pixel[1])
    return [round(each, 1) for each in box]


def _played(spec: ClipSpec) -> dict[str, Any]:
    return {"played_fps": spec.fps, "played_s": round(spec.duration_s, 3)}


def _first_epoch(subject: Subject, found: Found, sample: Sample, name: str) -> dict[str, Any]:
    """Where the sample stands in the first epoch, and its caption there."""
    seed = subject.args.seed
    samples, report, plan = found.listed
    facts: dict[str, Any] = {"caption": choose_caption(sample, seed, 0, subject.data.captions), "use": "evaluation"}
    if name != "train_data":
        return facts
    decoder = ClipDecoder(subject.spec, open_reader(subject.data.reader))
    train = VideoDataset(samples, decoder, plan, sources=report.sources)
    if subject.args.eval_split > 0 and not subject.args.valid_data:
        try:
            train, _ = split_held_out(train, subject.args.eval_split)
        except DataError:  # too few clips to hold one out; training says so
            return facts | {"use": "training"}
    numbers = np.flatnonzero(train.sample_ids() == sample.sample_id)
    if not len(numbers):
        return facts | {"use": "evaluation: args.eval_split holds it out"}
    order = SampleOrder(train.ordered(), seed)
    found_at = order.in_first_epoch(int(numbers[0]))
    if not found_at:
        return facts | {"use": "training, but not in the first epoch"}
    bucket, place = found_at[0]
    return facts | {
        "use": "training",
        "position": place + 1,
        "in_bucket": str(train.buckets[bucket]),
        "of": int(order.counts[bucket]),
        **_timesteps(subject, order, train.buckets, sample, found_at),
    }


def _timesteps(
    subject: Subject, order: SampleOrder, buckets: Sequence[Bucket], sample: Sample, places: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """What noise the sample meets at places (bucket, place in its stream): drawn as training draws it."""
    model, seed = subject.config.model, subject.args.seed
    num_timesteps = instantiate(model.schedule_config).num_timesteps
    positions = None
    if instantiate(model.loss_fn_config).stratified_timesteps:
        # One process and one micro batch a step: what a global batch holds doesn't depend on how it is split.
        names, sizes = [str(bucket) for bucket in buckets], [subject.batch_size(bucket) for bucket in buckets]
        waiting, known = set(places), dict[tuple[int, int], int]()
        plans = training_plans(order, names, sizes, BatchShare(), seed, StreamPosition())
        while waiting:
            plan = next(plans)
            known |= {(plan.bucket, place): at for place, at in zip(plan.places, plan.positions, strict=True)}
            waiting -= known.keys()
        positions = [known[each] for each in places]
    visits = [order.at(place, bucket=bucket)[0] for bucket, place in places]
    steps = draw_timesteps(num_timesteps, seed, visits, [sample.sample_id] * len(places), positions)
    return {"timesteps": steps, "num_timesteps": num_timesteps}


def _jpeg(pixels: NDArray[np.uint8], side: int) -> bytes:
    """pixels: uint8 [h, w, c]."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=70)
    return sink.getvalue()


def lines_of(facts: dict[str, Any]) -> Sequence[str]:
    """For the terminal."""
    return [f"clip {facts['number']}: {facts['path']}", *(f"  {name}: {text}" for name, text in table_of(facts))]


def table_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value) in words, in the order of the way."""
    number = FORMS["number"]
    rows = [("source", f"{facts['source']} ({facts['layout']}), of {facts['part']}")]
    if "width" in facts:
        seconds, fps = number(facts["seconds"]), number(facts["fps"])
        size = f"{facts['height']} x {facts['width']} (height x width)"
        rows.append(("file", f"{facts['frames']} frames in {seconds} s, {fps} per second; {size}"))
    if facts["why_not"]:
        rows.append(("left out", facts["why_not"]))
    if "bucket" in facts:
        top, left, height, width = map(number, facts["crop"])
        others = f"; may also be {', '.join(facts['other_buckets'])}" if facts["other_buckets"] else ""
        rows += [
            ("bucket", f"{facts['bucket']} (frames x height x width), {facts['video_tokens']} tokens{others}"),
            ("window", f"{facts['window']} of {facts['windows']}"),
            (
                "frames",
                f"{facts['indices'][0]} to {facts['indices'][-1]}, {number(facts['first_s'])} to "
                f"{number(facts['last_s'])} s, read by {facts['reader']}",
            ),
            (
                "rate",
                f"{number(facts['effective_fps'])} frames of each second are taken and played at "
                f"{number(facts['played_fps'])}; {facts['repeated']} repeat the one before, "
                f"{facts['padded']} are padding",
            ),
            (
                "crop",
                f"{height} x {width} pixels from the top {top}, left {left}: {100 * facts['kept']:.3g} % of the "
                f"picture, enlarged {number(facts['enlarged'])} times",
            ),
        ]
    for place, caption in enumerate(facts["captions"]):
        tokens = facts["tokens"][place] if facts["tokens"] else None
        many = f" ({tokens} of {facts['text_limit']} tokens)" if tokens is not None else ""
        rows.append(("caption", f"{caption}{many}"))
    if facts["why_no_tokens"]:
        rows.append(("tokens", f"not counted: {facts['why_no_tokens']}"))
    if "use" in facts:
        where = ""
        if "position" in facts:
            where = f": sample {facts['position']} of {facts['of']} of bucket {facts['in_bucket']} in the first epoch"
        rows.append(("used for", facts["use"] + where))
        if "timesteps" in facts:
            steps, last = ", ".join(map(str, facts["timesteps"])), facts["num_timesteps"] - 1
            rows.append(("noise timestep in the first epoch", f"{steps} (0 is almost clean, {last} is noise)"))
        if len(facts["captions"]) > 1:
            rows.append(("caption in the first epoch", facts["caption"]))
    return rows
