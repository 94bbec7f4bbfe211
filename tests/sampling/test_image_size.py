"""Sizes of videos from sizes of images."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogvideox.config.load import load_config
from cogvideox.errors import DataError
from cogvideox.geometry import Geometry
from cogvideox.sampling.image_size import SizeRule, check_images, size_rule
from cogvideox.sampling.prompts import Prompt
from hypothesis import given
from hypothesis import strategies as st
from layout.source_tree import ROOT
from PIL import Image

LARGE = SizeRule(768, Geometry(patch_size=(2, 2, 2)), (2400, 2400))


def published(name: str) -> SizeRule:
    return size_rule(load_config([str(ROOT / "configs" / name)], [], "sample", partial=True).model)


def test_rules_of_the_families() -> None:
    assert published("cogvideox_5b_i2v.yaml") == SizeRule(480, Geometry(), (480, 720))
    assert published("cogvideox1.5_5b_i2v.yaml") == LARGE


@pytest.mark.parametrize(
    ("image", "video"),
    [
        ((1080, 1920), (768, 1360)),  # what 1.5 was trained with
        ((1920, 1080), (1360, 768)),
        ((500, 500), (768, 768)),
        ((90, 160), (768, 1360)),
        ((1000, 3000), (768, 2304)),
    ],
)
def test_the_short_side_is_the_familys(image: tuple[int, int], video: tuple[int, int]) -> None:
    assert LARGE.size_for(*image) == video


def test_the_trained_size_of_the_first_family() -> None:
    rule = SizeRule(480, Geometry(), (480, 720))
    assert rule.size_for(960, 1440) == (480, 720) and rule.size_for(300, 300) == (480, 480)
    with pytest.raises(DataError, match=r"1080 x 1920 .* of 480 x 848, .* end at 480 x 720: .*=\[480,720\] crops"):
        rule.size_for(1080, 1920)
    assert SizeRule(480, Geometry(), None).size_for(1080, 1920) == (480, 848)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_sizes_are_legal_and_close_to_the_proportions(height: int, width: int) -> None:
    video = SizeRule(768, Geometry(), None).size_for(height, width)
    short, long = sorted(video)
    assert short == 768 and long % 16 == 0
    assert abs(long - 768 * max(height, width) / min(height, width)) <= 8
    assert (video[0] >= video[1]) == (height >= width) or short == long


def test_each_image_is_read_and_the_first_bad_line_named(tmp_path: Path) -> None:
    for name, size in (("wide", (96, 64)), ("flat", (400, 30))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    prompts = [
        Prompt(name, tmp_path / f"{name}.png", f"line {n}") for n, name in enumerate(("wide", "flat", "text"), 1)
    ]
    rule = SizeRule(32, Geometry(), (64, 64))
    assert check_images(prompts[:1] * 2, rule) == [(32, 48)] * 2 and check_images(prompts[:2]) is None
    with pytest.raises(DataError, match=r"^line 2: an image of 30 x 400"):
        check_images(prompts, rule)
    with pytest.raises(DataError, match=r"^line 3: .*text.png: can't be read as an image"):
        check_images(prompts)
