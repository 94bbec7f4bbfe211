"""A picture of what a run has changed: the same prompts, sampled before the first step and after the last."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

_COLUMNS, _GAP, _MARGIN = 6, 4, 12
_NARROWEST = 120  # pixels of a shown frame: smaller ones are enlarged, so that captions fit beside them
_TEXT, _PALE, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


def write_before_after(run: Path, samples: Mapping[str, str], prompts: Sequence[str]) -> Path:
    """`<run>/before_after.png`: for each prompt its words, a row of frames before, and one after.

    samples: step -> folder of videos, named alike in every folder, the prompt's number first. prompts: of the run.
    """
    steps = sorted(samples, key=int)
    ends = [steps[0], steps[-1]]
    videos = sorted(Path(samples[ends[0]]).glob("*.mp4"), key=lambda file: int(file.name.partition("_")[0]))
    rows = [
        (prompts[int(video.name.partition("_")[0])], [_frames(Path(samples[step]) / video.name) for step in ends])
        for video in videos
    ]
    labels = [f"{when}\nstep {step}" for when, step in zip(("before", "after"), ends, strict=True)]
    path = run / "before_after.png"
    draw_sheet(rows, labels).save(path)
    return path


def draw_sheet(rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]], labels: Sequence[str]) -> Image.Image:
    """rows: a caption, and for each label the frames of one line; frames of all rows have one size."""
    width, height = rows[0][1][0][0].size
    font, bold = ImageFont.load_default(14), ImageFont.load_default(17)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    beside = max(round(ruler.textlength(line, font)) for label in labels for line in label.split("\n")) + 2 * _GAP
    across = beside + _COLUMNS * (width + _GAP)
    letters = max(20, int(across / ruler.textlength("n", bold)))
    wrapped = [textwrap.wrap(caption, letters) or [""] for caption, _ in rows]
    line = 22
    tall = sum(len(lines) * line + len(labels) * (height + _GAP) + _MARGIN for lines in wrapped)
    sheet = Image.new("RGB", (across + 2 * _MARGIN, tall + _MARGIN), _PAPER)
    draw, top = ImageDraw.Draw(sheet), _MARGIN
    for lines, (_, videos) in zip(wrapped, rows, strict=True):
        for text in lines:
            draw.text((_MARGIN, top), text, _TEXT, bold)
            top += line
        for label, frames in zip(labels, videos, strict=True):
            draw.multiline_text((_MARGIN, top + height // 2 - 16), label, _PALE, font)
            for column, frame in enumerate(frames):
                sheet.paste(frame, (_MARGIN + beside + column * (width + _GAP), top))
            top += height + _GAP
        top += _MARGIN
    return sheet


def _frames(file: Path) -> list[Image.Image]:
    """Frames evenly spread from the first to the last."""
    with av.open(str(file)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    picked = [frames[round(place * (len(frames) - 1) / (_COLUMNS - 1))] for place in range(_COLUMNS)]
    zoom = max(1, -(-_NARROWEST // picked[0].width))
    size = (picked[0].width * zoom, picked[0].height * zoom)
    return [frame.resize(size, Image.Resampling.NEAREST) if zoom > 1 else frame for frame in picked]
