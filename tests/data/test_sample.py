"""Which caption of a sample is trained with."""

from __future__ import annotations

from collections import Counter

from cogvideox.data.media import Media
from cogvideox.data.sample import Sample, all_captions, choose_caption

THREE = Sample(Media("a.mp4"), ("one", "two", "three"), 7)


def test_the_choice_is_a_function_of_seed_epoch_and_sample() -> None:
    drawn = [choose_caption(THREE, 0, epoch, "random") for epoch in range(300)]
    assert drawn == [choose_caption(THREE, 0, epoch, "random") for epoch in range(300)]
    assert set(Counter(drawn)) == {"one", "two", "three"} and min(Counter(drawn).values()) > 70
    assert drawn != [choose_caption(THREE, 1, epoch, "random") for epoch in range(300)]
    assert {choose_caption(THREE, 0, epoch) for epoch in range(9)} == {"one"}


def test_all_captions_come_once_in_order() -> None:
    assert all_captions([THREE, Sample(Media("b.mp4"), ("two", "four"), 8)]) == ["one", "two", "three", "four"]
