"""Key `data.buckets`: the shapes that clips are trained at, written down one by one or as a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cogvideox.buckets import ASPECT_RATIOS, MAX_BUCKETS, VARY, Buckets, generate, micro_batch_size
from cogvideox.config.clip_sizes import ClipSizes, read_sizes
from cogvideox.config.findings import Refusal, Reporter
from cogvideox.config.report import suggestion
from cogvideox.config.schema import Config, DataConfig
from cogvideox.geometry import Bucket, Geometry

PATH = "data.buckets"
_WRITTEN = {
    "tokens": "a whole number of at least 1, or frames x height x width as 49x512x512",
    "pixels": "a whole number of at least 1, or height x width as 480x720",
    "frames": "a whole number of at least 1",
}
_RANGES = {
    "tokens": "{from: 49x256x384, to: 49x480x720}",
    "pixels": "{from: 256x384, to: 480x720}",
    "frames": "{from: 9, to: 49}",
}
_SIDES = {"tokens": 3, "pixels": 2, "frames": 1}
_WIDEST = 60  # to one
_KEYS = ("shapes", "tokens", "pixels", "aspect_ratios", "frames", "step", "max_upscale", "vary")


def read_buckets(data: DataConfig, sizes: ClipSizes, findings: Reporter) -> Buckets:
    """The shapes of a run, all of which the model can take; what is wrong goes to the report. Without `data.buckets`
    the one of video_size and max_num_frames."""
    default = Buckets((Bucket(data.max_num_frames, *data.video_size),))
    rule = data.buckets
    if rule is None:
        return default
    if not isinstance(rule, Mapping):
        rule = {"shapes": rule}
    if not _check_numbers(rule, findings):
        return default
    shapes = _written(rule["shapes"], sizes, findings) if "shapes" in rule else _generated(rule, data, sizes, findings)
    if len(shapes) > MAX_BUCKETS:
        findings.error(
            PATH,
            f"{len(shapes)} shapes are more than {MAX_BUCKETS}: give a larger step, or fewer frames or aspect_ratios",
        )
    shorten = sizes.geometry if data.short_clips == "shorten" else None
    if not shapes:
        return default
    return Buckets(shapes, rule.get("max_upscale"), rule.get("vary", "none"), shorten)


def largest_buckets(config: Config) -> tuple[Bucket, ...]:
    """The shapes whose micro batches take most memory: first the one with most tokens in the transformer, then, where
    that is another one, the one with most pixels at a time in the VAE. Of a configuration of training."""
    assert config.data is not None, "training has data"
    network, vae = (node.get("params") or {} for node in (config.model.network_config, config.model.first_stage_config))
    sizes = read_sizes(network, vae)
    one = config.deepspeed.get("train_micro_batch_size_per_gpu") or 1
    chunk = vae.get("encode_chunk_frames") or math.inf

    def clips(shape: Bucket) -> int:
        return micro_batch_size(sizes.geometry.num_video_tokens(*shape), config.data.tokens_per_micro_batch, one)  # type: ignore[union-attr]

    def tokens(shape: Bucket) -> int:
        return clips(shape) * sizes.geometry.num_video_tokens(*shape)

    def pixels(shape: Bucket) -> tuple[float, int]:
        area = clips(shape) * shape.height * shape.width
        return min(shape.frames, chunk) * area, shape.frames * area

    shapes = read_buckets(config.data, sizes, Refusal()).shapes
    return tuple(
        dict.fromkeys(
            (
                max(shapes, key=lambda each: (tokens(each), pixels(each))),
                max(shapes, key=lambda each: (pixels(each), tokens(each))),
            )
        )
    )


def _check_numbers(rule: Mapping[str, Any], findings: Reporter) -> bool:
    """Names, types and ranges of every key: whether all are right."""
    is_right = True

    def say(key: str, text: str) -> None:
        nonlocal is_right
        is_right = False
        findings.error(f"{PATH}.{key}", text)

    def wrong(key: str, text: str) -> None:
        say(key, f"{text}, not {rule[key]!r}")

    for key in rule:
        if key not in _KEYS:
            say(str(key), f"unknown key; {suggestion(str(key), _KEYS)}")

    for key in ("tokens", "pixels", "frames"):
        if isinstance(rule.get(key), Mapping):
            problem = _range_problem(key, rule[key])
            if problem:
                wrong(key, problem)
        elif key in rule and not (_each(rule[key]) and all(_number(key, each) for each in _each(rule[key]))):
            wrong(key, f"must be {_WRITTEN[key]}, a list of them, or a range as {_RANGES[key]}")
    if "step" in rule and not _is_count(rule["step"]):
        wrong("step", "must be a whole number of at least 1")
    limit = rule.get("max_upscale")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0):
        wrong("max_upscale", "must be a number above 0, or null for no limit")
    if rule.get("vary", "none") not in VARY:
        wrong("vary", f"must be one of {', '.join(VARY)}")
    if "aspect_ratios" in rule and not all(_ratio(each) for each in _each(rule["aspect_ratios"])):
        wrong("aspect_ratios", 'must be a list of width to height, as "16:9" (in quotes) or 1.78')
    if "shapes" in rule:
        if not _are_shapes(rule["shapes"]):
            wrong("shapes", "must be a list of [frames, height, width]")
        for key in ("tokens", "pixels", "aspect_ratios", "frames", "step"):
            if key in rule:
                say(key, "shapes are written down already: keep one of the two")
    elif "tokens" in rule and "pixels" in rule:
        say("pixels", "tokens is the budget already: keep one of the two")
    return is_right


def _written(shapes: Sequence[Any], sizes: ClipSizes, findings: Reporter) -> tuple[Bucket, ...]:
    for number, (frames, *size) in enumerate(shapes):
        sizes.check_frames(f"{PATH}[{number}]", frames, findings)
        sizes.check_size(f"{PATH}[{number}]", tuple(size), findings)
    return tuple(sorted({Bucket(*shape) for shape in shapes}))


def _generated(rule: Mapping[str, Any], data: DataConfig, sizes: ClipSizes, findings: Reporter) -> tuple[Bucket, ...]:
    """All frame counts, aspect ratios and budgets, each with each."""
    geometry = sizes.geometry
    frames = _frame_counts(rule.get("frames", data.max_num_frames), sizes, findings)
    step = rule.get("step")
    if step is not None and any(step % multiple for multiple in geometry.size_multiple):
        findings.error(f"{PATH}.step", f"must be a multiple of {max(geometry.size_multiple)}, not {step}")
        return ()
    unit = "pixels" if "pixels" in rule else "tokens"
    own = geometry.num_video_tokens(data.max_num_frames, *data.video_size)
    ratios = [ratio for each in _each(rule.get("aspect_ratios", ASPECT_RATIOS)) if (ratio := _ratio(each))]
    shapes: set[Bucket] = set()
    for written in _each(rule.get(unit, own)):
        least, most = (written["from"], written["to"]) if isinstance(written, Mapping) else (None, written)
        budget, at_least = _count(most, geometry), None if least is None else _count(least, geometry)
        made = generate(geometry, frames, ratios, step=step, largest=sizes.largest, at_least=at_least, **{unit: budget})
        shapes.update(shape for shape in made if sizes.geometry.size_problem(shape[1:]) == "")
        if not made and at_least is None:
            findings.error(f"{PATH}.{unit}", f"{most} {unit} are too few for any size: give more")
        elif not made:
            findings.error(f"{PATH}.{unit}", f"no legal size has {least} to {most} {unit}: give a wider range")
    return tuple(sorted(shapes))


def _frame_counts(written: Any, sizes: ClipSizes, findings: Reporter) -> list[int]:
    """The numbers given, or all legal ones of a range."""
    ends = list(written.values()) if isinstance(written, Mapping) else list(_each(written))
    for count in ends:
        sizes.check_frames(f"{PATH}.frames", count, findings)
    if not isinstance(written, Mapping):
        return ends
    step = sizes.geometry.temporal_compression * sizes.geometry.patch_size[0]
    return list(range(written["from"], written["to"] + 1, step)[: MAX_BUCKETS + 1])


def _range_problem(key: str, written: Mapping[str, Any]) -> str:
    """What is wrong with {from: ..., to: ...}; empty when nothing is."""
    if set(written) != {"from", "to"}:
        return f"a range has the keys from and to, as {_RANGES[key]}"
    ends = [_number(key, written[end]) for end in ("from", "to")]
    if not all(ends):
        return f"both ends of a range must be {_WRITTEN[key]}"
    return "a range goes from the smaller to the larger one" if ends[0] > ends[1] else ""


def _number(key: str, value: Any) -> int:
    """A whole number of at least 1, or the product that stands for pixels or tokens; 0 for anything else."""
    if _is_count(value):
        return int(value)
    sides = str(value).split("x")
    if _SIDES[key] == 1 or len(sides) != _SIDES[key] or not all(side.isdecimal() and len(side) < 7 for side in sides):
        return 0
    return math.prod(map(int, sides))


def _count(value: Any, geometry: Geometry) -> int:
    """The pixels of "480x720", the tokens of "49x512x512", or the number itself."""
    if isinstance(value, int):
        return value
    sides = [int(side) for side in value.split("x")]
    return math.prod(sides) if len(sides) == 2 else geometry.num_video_tokens(*sides)


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are_shapes(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(each, list | tuple) and len(each) == 3 and all(map(_is_count, each)) for each in value)


def _ratio(value: Any) -> float:
    """Width to height of "16:9" or 1.78; 0 for anything else. YAML reads 16:9 without quotes as 969 (minutes)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if 0 < value < _WIDEST else 0.0
    parts = str(value).split(":")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        return 0.0
    return int(parts[0]) / int(parts[1])
