"""Near duplicates against a comparison of every pair, one after the other."""

from __future__ import annotations

import io

import numpy as np
from cogvideox.doctor.pictures import Pictures
from cogvideox.doctor.similar import MOST_BITS, close_pairs, near_duplicates
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def frames(seed: int, size: tuple[int, int] = (60, 96), noise: float = 0.0) -> np.ndarray:
    """Four smooth pictures that change, uint8 [4, h, w, 3]."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(4):
        small = Image.fromarray(random.integers(0, 255, (7, 11, 3)).astype(np.uint8))
        found.append(np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC), np.float32))
    grain = np.random.default_rng(seed + 1000).normal(0, noise, (4, *size, 3)) if noise else 0
    return np.clip(np.stack(found) + grain, 0, 255).astype(np.uint8)


def test_the_same_clip_again_is_found_and_no_other() -> None:
    shown = [frames(seed) for seed in range(40)]
    shown += [frames(3, (120, 192)), frames(3, noise=8.0), frames(7, (60, 90))]
    pictures = [Pictures.of(each) for each in shown]
    hashes, colours = (np.stack([getattr(each, name) for each in pictures]) for name in ("hash", "colours"))
    assert near_duplicates(hashes, colours) == [[3, 40, 41], [7, 42]]


def test_the_number_of_bits_is_that_of_a_plain_count() -> None:
    random = np.random.default_rng(0)
    first = random.integers(0, 256, (4, 8)).astype(np.uint8)
    colours = np.zeros((2, 4, 8, 8, 3), np.uint8)
    for flipped in (0, 1, MOST_BITS, MOST_BITS + 1, 100):
        bits = np.unpackbits(first.reshape(-1))
        bits[random.permutation(256)[:flipped]] ^= 1
        second = np.packbits(bits).reshape(4, 8)
        found = near_duplicates(np.stack([first, second]), colours)
        assert found == ([[0, 1]] if flipped <= MOST_BITS else []), flipped


def test_flat_pictures_of_other_colours_are_others() -> None:
    pictures = [Pictures.of(np.full((4, 60, 96, 3), level, np.uint8)) for level in (40, 90, 91, 200)]
    hashes, colours = (np.stack([getattr(each, name) for each in pictures]) for name in ("hash", "colours"))
    assert near_duplicates(hashes, colours) == [[1, 2]]


def test_more_clips_than_a_block() -> None:
    random = np.random.default_rng(1)
    hashes = random.integers(0, 256, (1300, 4, 8)).astype(np.uint8)
    hashes[1200] = hashes[5]
    assert near_duplicates(hashes, np.zeros((1300, 4, 8, 8, 3), np.uint8)) == [[5, 1200]]


def groups_one_by_one(hashes: np.ndarray, colours: np.ndarray) -> list[list[int]]:
    """Each clip that is in no group yet takes those behind it that are nearly the same, and in no group either."""
    bits, flat = np.unpackbits(hashes.reshape(len(hashes), -1), axis=1), colours.reshape(len(colours), -1).astype(int)
    groups, taken = [], set[int]()
    for one in range(len(bits)):
        members = [
            other
            for other in range(one + 1, len(bits))
            if one not in taken
            and other not in taken
            and (bits[one] != bits[other]).sum() <= MOST_BITS
            and abs(flat[one] - flat[other]).mean() <= 6
            and abs(flat[one] - flat[other]).max() <= 40
        ]
        taken.update(members)
        groups += [[one, *members]] if members else []
    return groups


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), origins=st.integers(1, 6))
def test_groups_are_those_of_comparing_every_pair(seed: int, count: int, origins: int) -> None:
    """Few different clips, many of them the same to the byte, others at the border of being near."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (origins, 256))[random.integers(0, origins, count)].astype(np.uint8)
    colours = np.full((count, 4, 8, 8, 3), 100, np.uint8)
    for clip in range(count):
        bits[clip, random.permutation(256)[: random.choice([0, 0, 5, 9, 17])]] ^= 1
        colours[clip] += random.choice(np.array([0, 0, 4, 8], np.uint8))
    hashes = np.packbits(bits, axis=1).reshape(count, 4, 8)
    assert near_duplicates(hashes, colours) == groups_one_by_one(hashes, colours)


def test_copies_by_the_thousand_are_one_group() -> None:
    """As pairs they would be 200 million."""
    hashes, colours = np.zeros((20_000, 4, 8), np.uint8), np.zeros((20_000, 4, 8, 8, 3), np.uint8)
    assert near_duplicates(hashes, colours) == [list(range(20_000))]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    width=st.sampled_from([4, 8, 20, 32]),
    most=st.integers(0, 20),
    origins=st.integers(1, 8),
)
def test_close_pairs_are_those_of_comparing_every_pair(
    seed: int, count: int, width: int, most: int, origins: int
) -> None:
    """Hashes that are few others with some bits changed, so that many distances lie about the limit."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (origins, 8 * width))[random.integers(0, origins, count)].astype(np.uint8)
    for row in bits:
        row[random.permutation(8 * width)[: random.integers(0, most + 2)]] ^= 1
    expected = [
        [one, other]
        for one in range(count)
        for other in range(one + 1, count)
        if int((bits[one] != bits[other]).sum()) <= most
    ]
    assert close_pairs(np.packbits(bits, axis=1), most).tolist() == expected


def test_the_number_of_clips_does_not_count_twice() -> None:
    """100,000 clips; comparing every pair of them would take minutes."""
    random = np.random.default_rng(2)
    hashes = random.integers(0, 256, (100_000, 32)).astype(np.uint8)
    hashes[99_999] = hashes[70_000]
    hashes[99_999, :2] ^= 255
    assert close_pairs(hashes, MOST_BITS).tolist() == [[70_000, 99_999]]


def test_what_pictures_say() -> None:
    black = Pictures.of(np.zeros((4, 60, 96, 3), np.uint8))
    assert (black.brightness, black.contrast, black.motion) == (0, 0, 0)
    steps = np.repeat(np.array([10, 20, 50, 45], np.uint8), 60 * 96 * 3).reshape(4, 60, 96, 3)
    moving = Pictures.of(steps)
    assert abs(moving.motion - 30) < 0.01 and abs(moving.brightness - 50) < 0.01
    assert max(Image.open(io.BytesIO(moving.jpeg)).size) <= 144
