"""Key data.buckets: what is right, and what is wrong in one line each."""

from __future__ import annotations

from typing import Any

import pytest
from cogvideox.buckets import Buckets
from cogvideox.config.buckets import read_buckets
from cogvideox.config.clip_sizes import ClipSizes
from cogvideox.config.findings import Refusal
from cogvideox.config.load import load_config
from cogvideox.config.schema import DataConfig
from cogvideox.errors import ConfigError
from cogvideox.geometry import Bucket, Geometry
from layout.source_tree import ROOT

V1_0 = ClipSizes(Geometry(), largest=(480, 720), longest=49)
V1_5 = ClipSizes(Geometry(patch_size=(2, 2, 2)), largest=None, longest=161)


def read(buckets: Any, sizes: ClipSizes = V1_0, **keys: Any) -> Buckets:
    return read_buckets(DataConfig(buckets=buckets, **keys), sizes, Refusal())


def test_none_is_the_one_shape_of_the_section() -> None:
    assert read(None).shapes == (Bucket(49, 480, 720),)


def test_written_shapes() -> None:
    written = read([[49, 480, 720], [21, 480, 480], [49, 480, 720]])
    assert written == Buckets((Bucket(21, 480, 480), Bucket(49, 480, 720)))
    more = read({"shapes": [[17, 480, 720]], "max_upscale": 1.5, "vary": "size"}, short_clips="shorten")
    assert more == Buckets((Bucket(17, 480, 720),), 1.5, "size", V1_0.geometry)


def test_generated_shapes_have_the_budget_of_the_section_or_their_own() -> None:
    made = read({"aspect_ratios": ["1:1", 1.5, "2:3"], "frames": [21, 49]}).shapes
    assert Bucket(49, 480, 720) in made and {shape.frames for shape in made} == {21, 49}
    assert all(shape.height <= 480 and shape.width <= 720 for shape in made), "positions end there"
    large = read({"pixels": [480 * 720, 768 * 1360], "aspect_ratios": "16:9"}, V1_5, max_num_frames=81).shapes
    assert len(large) == 2 and {shape.frames for shape in large} == {81}


def test_a_range_has_every_legal_size_of_a_ratio_and_every_legal_number_of_frames() -> None:
    made = read({"pixels": {"from": "256x384", "to": "480x720"}, "aspect_ratios": "3:2"}).shapes
    assert [shape[1:] for shape in made] == [(32 * k, 48 * k) for k in range(8, 16)], "16-steps that are 3:2"
    assert read({"frames": {"from": 9, "to": 25}, "aspect_ratios": "3:2"}).shapes == tuple(
        Bucket(frames, 480, 720) for frames in (9, 13, 17, 21, 25)
    )
    longer = read({"frames": {"from": 9, "to": 25}, "aspect_ratios": "3:2"}, V1_5)
    assert [shape.frames for shape in longer.shapes] == [9, 17, 25]
    by_tokens = read({"tokens": {"from": "49x256x384", "to": "49x480x720"}, "aspect_ratios": "3:2"})
    assert by_tokens.shapes == made


def test_a_budget_written_as_a_size() -> None:
    assert read({"pixels": "480x720"}) == read({"pixels": 480 * 720})
    assert read({"tokens": ["49x480x720", "9x256x256"]}) == read({"tokens": [17_550, 768]})


def test_too_many_shapes_are_an_error_at_once() -> None:
    base = [str(ROOT / "configs" / name) for name in ("cogvideox1.5_5b_lora.yaml", "sft.yaml")]
    interpolate = "model.network_config.params.modules.pos_embed_config.params.resize=interpolate"
    written = "data.buckets={pixels: {from: 1, to: 999999x999999}}"
    with pytest.raises(ConfigError, match=r"data.buckets: \d+ shapes are more than 1024: give a larger step"):
        load_config(base, ["args.train_data=[clips]", interpolate, written], "train")


WRONG = {
    "[[48, 480, 720]]": r"data.buckets\[0\]: must be 4k \+ 1, not 48; nearest: 45 or 49",
    "[[49, 480, 724]]": r"data.buckets\[0\]: \[height, width\] must be multiples of 16, not \[480, 724\]",
    "[[49, 768, 768]]": r"data.buckets\[0\]: \[768, 768\] is larger than the network's positions",
    "{shapes: [], frames: 49}": r"data.buckets.shapes: must be a list of \[frames, height, width\]",
    "{shapes: [[49, 480, 720]], frames: 49}": r"data.buckets.frames: shapes are written down already",
    "{token: 1000}": r"data.buckets.token: unknown key; .*tokens",
    "{tokens: 0}": r"data.buckets.tokens: must be a whole number of at least 1, or frames x height x width .*not 0",
    "{pixels: 480x0}": r"data.buckets.pixels: must be a whole number of at least 1, or height x width .*not '480x0'",
    "{pixels: 49x480x720}": r"data.buckets.pixels: .* height x width as 480x720, .* not '49x480x720'",
    "{frames: 9x9}": r"data.buckets.frames: must be a whole number of at least 1, a list of them, or a range",
    "{frames: []}": r"data.buckets.frames: must be a whole number of at least 1, a list of them, or a range",
    "{frames: {from: 9, to: 50}}": r"data.buckets.frames: must be 4k \+ 1, not 50; nearest: 49 or 53",
    "{frames: {from: 49, to: 9}}": r"data.buckets.frames: a range goes from the smaller to the larger one",
    "{frames: {from: 9, to: 4000000001}}": r"data.buckets.frames: 4000000001 pixel frames are more than .*: 49",
    "{pixels: {from: 256x384}}": r"data.buckets.pixels: a range has the keys from and to, as \{from: 256x384, to",
    "{pixels: {from: 256x384, to: big}}": r"data.buckets.pixels: both ends of a range must be .*480x720, not",
    "{pixels: {from: 16x18, to: 16x18}}": r"data.buckets.pixels: no legal size has 16x18 to 16x18 pixels: give a wider",
    "{pixels: {from: 999999x999999, to: 999999x999999}}": r"data.buckets.pixels: no legal size has",
    "{tokens: 9, pixels: 9}": r"data.buckets.pixels: tokens is the budget already",
    "{tokens: 9}": r"data.buckets.tokens: 9 tokens are too few for any size",
    "{aspect_ratios: [16/9]}": r'data.buckets.aspect_ratios: must be a list of width to height, as "16:9" \(in quotes',
    "{aspect_ratios: [16:9]}": r'data.buckets.aspect_ratios: .* as "16:9" \(in quotes\) or 1.78, not \[969\]',
    "{frames: [49, 50]}": r"data.buckets.frames: must be 4k \+ 1, not 50; nearest: 49 or 53",
    "{step: 24}": r"data.buckets.step: must be a multiple of 16, not 24",
    "{max_upscale: 0}": r"data.buckets.max_upscale: must be a number above 0",
    "{vary: all}": r"data.buckets.vary: must be one of none, size, frames, both",
    "text": r"data.buckets: .*",
}


@pytest.mark.parametrize("written", WRONG, ids=str)
def test_what_is_wrong_is_said_at_its_place(written: str) -> None:
    base = [str(ROOT / "configs" / name) for name in ("cogvideox_2b_lora.yaml", "sft.yaml")]
    overrides = ["args.train_data=[clips]", f"data.buckets={written}"]
    with pytest.raises(ConfigError, match=WRONG[written]):
        load_config(base, overrides, "train")
