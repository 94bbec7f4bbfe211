"""The fine-tuning clips, as same-named mp4 and txt pairs: the new shape, known shapes beside it, and held-out ones;
and the images that videos of the image-to-video member begin with.

The known ones keep the base's knowledge: without them the fine-tune learns that everything looks like the new shape.
"""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .captions import plain_caption, random_spec
from .render import BACKGROUNDS, COLORS, FPS, MOTIONS, NEW_SHAPE, ClipSpec, render

SEED = 31
NUM_NEW, NUM_KNOWN, NUM_HELD_OUT = 32, 16, 8


def fine_tuning_specs() -> tuple[list[ClipSpec], list[ClipSpec]]:
    """Training clips (new shape, then known ones) and held-out clips of the new shape.

    Every colour, motion and background is among the training clips.
    """
    rng = random.Random(SEED)
    total = NUM_NEW + NUM_HELD_OUT
    combinations: set[tuple[str, ...]] = set()
    while len(combinations) < total:  # until no combination comes twice, so that the held-out ones are new
        columns = []
        for names in (tuple(COLORS), MOTIONS, tuple(BACKGROUNDS)):
            column = [names[index % len(names)] for index in range(total)]
            rng.shuffle(column)
            columns.append(column)
        rows = list(zip(*columns, strict=True))
        combinations = set(rows)
    specs = [ClipSpec(NEW_SHAPE, *row, rng.getrandbits(48)) for row in rows]
    known = [random_spec(rng) for _ in range(NUM_KNOWN)]
    return [*specs[:NUM_NEW], *known], specs[NUM_NEW:]


def write_clips(folder: Path) -> None:
    """folder/train and folder/held_out: 000.mp4 with 000.txt, and so on."""
    for name, specs in zip(("train", "held_out"), fine_tuning_specs(), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, spec in enumerate(specs):
            write_mp4(folder / name / f"{index:03d}.mp4", render(spec))
            (folder / name / f"{index:03d}.txt").write_text(plain_caption(spec) + "\n", encoding="utf-8")


IMAGES = (
    ClipSpec("ring", "red", "right", "gray", 1),
    ClipSpec("triangle", "blue", "up", "brown", 2),
    ClipSpec("cross", "yellow", "shrink", "teal", 3),
    ClipSpec(NEW_SHAPE, "green", "down", "navy", 4),
)


def write_images(folder: Path) -> None:
    """folder/red_ring.png and so on: first frames of clips that nothing is trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec in IMAGES:
        Image.fromarray(render(spec)[0]).save(folder / f"{spec.color}_{spec.shape}.png", optimize=True)


def write_mp4(path: Path, clip: np.ndarray) -> None:
    """H.264 4:2:0 at a quality where the loss can't be seen; one thread, so that the bytes are the same everywhere."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10", "preset": "veryslow", "threads": "1"}
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
