"""The demo's recipe: clips, captions, tokenizer, measurement."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from demo_recipe.captions import MOTION_PHRASES, caption, plain_caption, random_spec
from demo_recipe.clips import IMAGES, NUM_HELD_OUT, NUM_KNOWN, NUM_NEW, fine_tuning_specs
from demo_recipe.measure import agreement, read
from demo_recipe.render import HEIGHT, MOTIONS, NEW_SHAPE, NUM_FRAMES, SHAPES, WIDTH, ClipSpec, render

DEMO = Path(__file__).resolve().parents[2] / "demo"


def test_rendering_depends_on_the_spec_alone():
    spec = ClipSpec("triangle", "red", "left", "teal", 5)
    first, again = render(spec), render(spec)
    assert first.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, render(ClipSpec("triangle", "red", "left", "teal", 6)))


@pytest.mark.parametrize("motion", MOTIONS)
def test_captions_say_what_is_rendered(motion):
    rng = random.Random(motion)
    for shape in (*SHAPES, NEW_SHAPE):
        drawn = random_spec(rng)
        spec = ClipSpec(shape, drawn.color, motion, drawn.background, drawn.seed)
        assert all(agreement(spec, render(spec)).values()), spec
        sentence = caption(spec, rng)
        assert all(word in sentence for word in (spec.shape, spec.color, spec.background))
        assert any(phrase in sentence for phrase in MOTION_PHRASES[motion])


def test_an_empty_clip_has_no_reading():
    assert read(np.full((NUM_FRAMES, HEIGHT, WIDTH, 3), 90, np.uint8)) is None


def test_the_base_world_never_shows_the_new_shape():
    rng = random.Random(0)
    assert NEW_SHAPE not in {random_spec(rng).shape for _ in range(300)}


@pytest.mark.parametrize(("name", "count"), [("train", NUM_NEW + NUM_KNOWN), ("held_out", NUM_HELD_OUT)])
def test_stored_clips_are_the_rendered_ones(name, count):
    specs = dict(zip(("train", "held_out"), fine_tuning_specs(), strict=True))[name]
    files = sorted((DEMO / "clips" / name).glob("*.mp4"))
    assert len(files) == len(specs) == count
    for file, spec in zip(files, specs, strict=True):
        assert file.with_suffix(".txt").read_text(encoding="utf-8").strip() == plain_caption(spec)
    with av.open(str(files[0])) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    rendered = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in render(specs[0])]
    # Halved chroma, which the format asks for, costs more at saturated edges than the codec: both sides have it.
    expected = np.stack([frame.reformat(format="yuv420p").to_ndarray(format="rgb24") for frame in rendered])
    error = (frames.astype(np.float64) - expected) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 45


def test_training_and_held_out_clips_differ():
    train, held_out = fine_tuning_specs()
    new = [spec for spec in train if spec.shape == NEW_SHAPE]
    assert len(new) == NUM_NEW
    shown = {(spec.color, spec.motion, spec.background) for spec in new}
    assert not shown & {(spec.color, spec.motion, spec.background) for spec in held_out}


def test_stored_images_are_the_rendered_ones():
    assert {file.name for file in (DEMO / "images").iterdir()} == {f"{spec.color}_{spec.shape}.png" for spec in IMAGES}
    for spec in IMAGES:
        stored = np.asarray(Image.open(DEMO / "images" / f"{spec.color}_{spec.shape}.png"))
        assert np.array_equal(stored, render(spec)[0])
