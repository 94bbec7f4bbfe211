"""Frames, sizes and tokens against counting, and the words for what is illegal."""

from __future__ import annotations

import re

import pytest
from cogvideox.geometry import Geometry, multiple_problem

DEEP = Geometry(patch_size=(2, 2, 2))


@pytest.mark.parametrize(
    ("geometry", "frames", "latents", "padded", "tokens"),
    [
        (Geometry(), 49, 13, 13, 13 * 30 * 45),  # 2B and 5B
        (Geometry(), 1, 1, 1, 30 * 45),
        (DEEP, 81, 21, 22, 11 * 30 * 45),
        (Geometry(2, 4, (1, 4, 2)), 5, 3, 3, 3 * 30 * 90),
    ],
)
def test_a_clip_of_480_x_720(geometry: Geometry, frames: int, latents: int, padded: int, tokens: int) -> None:
    assert geometry.latent_frames(frames) == latents and geometry.pixel_frames(latents) == frames
    assert geometry.padded_frames(latents) == padded and geometry.real_frames(padded) == latents
    assert geometry.num_video_tokens(frames, 480, 720) == tokens


@pytest.mark.parametrize("compression", [1, 2, 4, 8])
@pytest.mark.parametrize("deep", [1, 2, 3])
def test_a_number_of_frames_is_legal_when_patches_divide_it(compression: int, deep: int) -> None:
    """By counting: a latent of one frame, then whole ones, then padding up to whole patches; never a lone image."""
    geometry = Geometry(compression, 8, (deep, 2, 2))
    legal = {
        1 + compression * more for more in range(60) if (1 + more + deep - 1) % deep == 0 and (deep == 1 or more > 0)
    }
    for frames in range(-3, 50):
        problem = geometry.frames_problem(frames)
        assert (problem == "") == (frames in legal), frames
        if problem:
            named = [int(word) for word in re.findall(r"\d+", problem.partition("nearest: ")[2])]
            below = [each for each in sorted(legal) if each < frames][-1:]
            above = [each for each in sorted(legal) if each > frames][:1]
            assert named == below + above, (frames, problem)


@pytest.mark.parametrize("deep", [1, 2])
def test_latent_frames_are_legal_as_their_pixels_are(deep: int) -> None:
    geometry = Geometry(patch_size=(deep, 2, 2))
    for latents in range(1, 60):
        illegal = bool(geometry.frames_problem(geometry.pixel_frames(latents)))
        assert bool(geometry.latent_frames_problem(latents)) == illegal, latents
    assert "at least" in Geometry().latent_frames_problem(0)


@pytest.mark.parametrize(
    ("geometry", "frames", "words"),
    [
        (Geometry(), 50, "must be 4k + 1, not 50; nearest: 49 or 53"),
        (Geometry(), 0, "must be 4k + 1, not 0; nearest: 1"),
        (DEEP, 49 + 4, "must be 8k + 1 because patches hold 2 latent frames, not 53; nearest: 49 or 57"),
        (DEEP, 1, "can't be 1: one frame does not fill a patch of 2 latent frames; nearest: 9"),
    ],
)
def test_words_for_frames(geometry: Geometry, frames: int, words: str) -> None:
    assert geometry.frames_problem(frames) == words


def test_sizes() -> None:
    assert Geometry().size_problem((480, 720)) == "" and Geometry().size_multiple == (16, 16)
    assert Geometry().size_problem((481, 8)) == "must be multiples of 16, not [481, 8]; nearest: [480, 16]"
    uneven = Geometry(patch_size=(1, 4, 2))
    assert uneven.size_problem((16, 16)) == "must be multiples of 32 and 16, not [16, 16]; nearest: [32, 16]"
    assert Geometry().latent_size(480, 720) == (60, 90)


def test_multiples() -> None:
    assert multiple_problem(32, 16) == ""
    assert multiple_problem(40, 16) == "must be a multiple of 16, not 40; nearest: 32 or 48"
    assert multiple_problem(0, 16) == "must be a multiple of 16, not 0; nearest: 16"
