"""Shapes for a budget, and the one that a clip takes."""

from __future__ import annotations

import pytest
from cogvideox.buckets import ASPECT_RATIOS, VARY, Buckets, Fit, generate
from cogvideox.data.transforms import covering_size
from cogvideox.geometry import Bucket, Geometry
from hypothesis import given, settings
from hypothesis import strategies as st

V1_0, V1_5 = Geometry(), Geometry(patch_size=(2, 2, 2))
sides = st.integers(64, 4096)
shapes = st.builds(
    lambda frames, height, width: Bucket(8 * frames + 1, 16 * height, 16 * width),
    st.integers(0, 10),
    st.integers(4, 90),
    st.integers(4, 90),
)


@given(
    st.sampled_from([V1_0, V1_5]),
    st.lists(st.sampled_from([9, 17, 49, 81]), min_size=1, max_size=3, unique=True),
    st.lists(st.floats(0.3, 3.5), min_size=1, max_size=4),
    st.integers(2000, 60_000),
    st.sampled_from([None, 32, 64]),
    st.sampled_from([None, (480, 720), (768, 1360)]),
)
def test_generated_shapes_are_legal_within_the_budget_and_near_their_ratio(
    geometry: Geometry, frames: list[int], ratios: list[float], tokens: int, step: int | None, largest: tuple[int, int]
) -> None:
    made = generate(geometry, frames, ratios, tokens=tokens, step=step, largest=largest)
    assert len(set(made)) == len(made) == len(set(map(str, made)))
    for bucket in made:
        assert not geometry.frames_problem(bucket.frames) and not geometry.size_problem(bucket[1:])
        assert geometry.num_video_tokens(*bucket) <= tokens
        assert all(side % (step or 16) == 0 for side in bucket[1:])
        assert largest is None or (bucket.height <= largest[0] and bucket.width <= largest[1])
        grain = (step or 16) / min(bucket[1:])
        assert min(abs(bucket.width / bucket.height / ratio - 1) for ratio in ratios) < 3 * grain


@settings(max_examples=40)
@given(
    st.sampled_from([V1_0, V1_5]),
    st.sampled_from([9, 49, 81]),
    st.floats(0.4, 2.5),
    st.tuples(st.integers(128, 600), st.integers(0, 400)),
    st.sampled_from([None, 32]),
    st.sampled_from([None, (480, 720), (768, 1360)]),
)
def test_a_range_has_every_size_of_nearly_a_ratio(
    geometry: Geometry, frames: int, ratio: float, sides: tuple[int, int], step: int | None, largest: tuple[int, int]
) -> None:
    """Against all heights and widths there are, one by one."""
    least, most = sides[0] ** 2, (sides[0] + sides[1]) ** 2
    grain = step or 16
    by_shorter: dict[int, list[tuple[float, tuple[int, int]]]] = {}
    for height in range(grain, round((most / ratio) ** 0.5 * 1.2) + 1, grain):
        for width in range(grain, round((most * ratio) ** 0.5 * 1.2) + 1, grain):
            if (width >= height) == (ratio >= 1):
                away = abs(width - height * ratio) if ratio >= 1 else abs(height - width / ratio)
                by_shorter.setdefault(min(height, width), []).append((away, (height, width)))
    near = [min(each) for each in by_shorter.values()]
    every = {
        size
        for away, size in near
        if least <= size[0] * size[1] <= most
        and (largest is None or (size[0] <= largest[0] and size[1] <= largest[1]))
        and away < 0.0099 * max(size)
    }
    made = generate(geometry, [frames], [ratio], pixels=most, at_least=least, step=step, largest=largest)
    assert every <= {shape[1:] for shape in made}
    for bucket in made:
        assert not geometry.size_problem(bucket[1:]) and all(side % grain == 0 for side in bucket[1:])
        assert least <= bucket.height * bucket.width <= most
        assert largest is None or (bucket.height <= largest[0] and bucket.width <= largest[1])
        assert not every or max(bucket.width / bucket.height / ratio, bucket.height / bucket.width * ratio) < 1.0102


def test_one_budget_for_few_large_and_many_small_frames() -> None:
    made = generate(V1_0, [9, 21, 49], [1.0], tokens=13_824, step=32)
    assert made == (Bucket(9, 1056, 1056), Bucket(21, 768, 768), Bucket(49, 512, 512))
    assert (
        generate(V1_0, [49], [16 / 9, 9 / 16], pixels=480 * 720) == (Bucket(49, 784, 432), Bucket(49, 432, 784))[::-1]
    )
    assert generate(V1_0, [49], ASPECT_RATIOS, tokens=1) == ()


@given(st.lists(shapes, min_size=1, max_size=12), st.tuples(sides, sides), st.integers(1, 100), st.floats(0.5, 3))
def test_what_a_clip_takes(given_: list[Bucket], size: tuple[int, int], frames: int, limit: float) -> None:
    buckets = Buckets(tuple(given_), max_upscale=limit)
    choices = buckets.choices(size, frames)
    fits = {shape: Fit.of(size, shape[1:]) for shape in given_}
    legal = [each for each in given_ if each.frames <= frames and fits[each].enlargement <= limit]
    if not legal:
        assert choices == () and buckets.why_none(size, frames)
        return
    (best,) = choices
    assert best in legal
    for other in legal:
        assert fits[best].kept_share >= fits[other].kept_share - 0.01
        if fits[other].kept_share >= max(fits[each].kept_share for each in legal) - 0.01:
            assert (best.frames, best.height * best.width) >= (other.frames, other.height * other.width)


@given(shapes, st.tuples(sides, sides))
def test_the_crop_is_what_covering_gives(shape: Bucket, size: tuple[int, int]) -> None:
    """Against the pixels of data.transforms: the covering size, of which the middle is kept."""
    covered = covering_size(size, shape[1:])
    fit = Fit.of(size, shape[1:])
    # One covering side is exact, the other one is rounded by at most half a pixel.
    pixels = max(covered[0] / size[0], covered[1] / size[1])
    assert fit.enlargement == pytest.approx(pixels, rel=0, abs=0.5 / min(size) + 1e-9)
    kept = shape.height * shape.width / (covered[0] * covered[1])
    assert fit.kept_share == pytest.approx(kept, rel=0.6 / min(shape[1:]))


RANGE = generate(V1_5, [9, 17, 49], [2 / 3, 1.0, 1.5], pixels=480 * 720, at_least=256 * 384, step=32)


@settings(max_examples=40)
@given(st.tuples(sides, sides), st.integers(9, 60), st.sampled_from(VARY), st.floats(0.5, 2), st.booleans())
def test_what_is_drawn_has_the_clips_aspect_and_is_never_enlarged_beyond_the_limit(
    size: tuple[int, int], frames: int, vary: str, limit: float, shorten: bool
) -> None:
    buckets = Buckets(RANGE, limit, vary, V1_5 if shorten else None)
    choices = buckets.choices(size, frames)
    kept = [Fit.of(size, each[1:]).kept_share for each in choices]
    for shape in choices:
        assert not V1_5.frames_problem(shape.frames) and not V1_5.size_problem(shape[1:])
        assert shape.frames <= frames and Fit.of(size, shape[1:]).enlargement <= limit * (1 + 1e-6)
    if choices:
        assert max(kept) - min(kept) <= 0.02, "of one aspect"
        assert vary in ("frames", "both") or len({shape.frames for shape in choices}) == 1
        assert vary in ("size", "both") or len({shape[1:] for shape in choices}) == 1


def test_all_sizes_of_a_ratio_are_drawn() -> None:
    shapes = generate(V1_5, [49], [2 / 3, 1.0, 1.5], pixels=480 * 720, at_least=256 * 384)
    drawn = Buckets(shapes, None, "size").choices((960, 1440), 60)
    assert [shape[1:] for shape in drawn] == [(480, 720), *((32 * k, 48 * k) for k in range(8, 15))]


SET = (Bucket(49, 480, 720), Bucket(21, 480, 720), Bucket(49, 720, 480), Bucket(49, 320, 480), Bucket(9, 960, 1440))


@pytest.mark.parametrize(
    ("vary", "expected"),
    [
        ("none", [(49, 480, 720)]),
        ("size", [(49, 480, 720), (49, 320, 480)]),
        ("frames", [(49, 480, 720), (21, 480, 720)]),
        ("both", [(49, 480, 720), (9, 960, 1440), (21, 480, 720), (49, 320, 480)]),
    ],
)
def test_what_may_vary(vary: str, expected: list[tuple[int, int, int]]) -> None:
    assert list(Buckets(SET, vary=vary).choices((1080, 1620), 60)) == [Bucket(*each) for each in expected]


def test_shorter_clips() -> None:
    buckets = Buckets(SET)
    assert buckets.choices((480, 720), 30) == (Bucket(21, 480, 720),)
    assert buckets.choices((720, 480), 30) == (Bucket(21, 480, 720),), "few frames weigh more than the crop"
    assert buckets.choices((480, 720), 8) == ()
    assert buckets.why_none((480, 720), 8) == "it has 8 frames at this rate; the shortest bucket takes 9"
    assert "48 x 72 pixels would be enlarged 6.67 times; max_upscale is 2" in Buckets(SET, 2.0).why_none((48, 72), 60)
    shortened = Buckets(SET, shorten=V1_0)
    assert shortened.choices((720, 480), 30) == (Bucket(29, 720, 480),)
    assert shortened.choices((720, 480), 60) == (Bucket(49, 720, 480),)
    assert Buckets(SET, shorten=V1_5).choices((720, 480), 30) == (Bucket(25, 720, 480),)
    assert Buckets(SET, shorten=V1_5).choices((720, 480), 8) == ()
