"""One rule for clips whose latents don't fill the patches."""

from __future__ import annotations

import pytest
import torch
from cogvideox.errors import ShapeError
from cogvideox.model.frame_padding import num_padded, pad_frames, unpad_frames
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 40))
def test_patches_of_one_frame_need_nothing(frames: int) -> None:
    latent = torch.randn(2, frames, 1, 1, 1)
    assert num_padded(frames, 1) == frames
    assert pad_frames(latent, 1) is latent and unpad_frames(latent, 1) is latent


@given(st.integers(1, 40))
def test_clips_of_8j_plus_1_frames_come_back_as_they_were(j: int) -> None:
    frames = (8 * j + 1 - 1) // 4 + 1
    assert frames % 2 == 1 and num_padded(frames, 2) == frames + 1
    latent = torch.randn(2, frames, 3, 1, 1)
    padded = pad_frames(latent, 2)
    assert padded.shape == (2, frames + 1, 3, 1, 1)
    assert torch.equal(padded[:, 0], latent[:, 0]) and torch.equal(padded[:, 1:], latent)
    assert torch.equal(unpad_frames(padded, 2), latent)
    assert torch.equal(unpad_frames(padded[0], 2), latent[0])  # of one clip, without the batch


@pytest.mark.parametrize(
    ("frames", "patch", "message"),
    [
        (1, 2, "a clip of 1 latent frames .* patches hold 2 .*; nearest: 3$"),
        (2, 2, "a clip of 2 latent frames .*; nearest: 3$"),
        (4, 2, "a clip of 4 latent frames .*; nearest: 3 or 5$"),
        (20, 2, "nearest: 19 or 21$"),
        (22, 2, "nearest: 21 or 23$"),
        (0, 2, "nearest: 3$"),
        (0, 1, "must be at least 1, not 0$"),
    ],
)
def test_other_counts_are_refused_with_the_nearest(frames: int, patch: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        num_padded(frames, patch)


def test_unpadded_latents_are_not_unpadded_again() -> None:
    with pytest.raises(AssertionError, match="21 latents are not padded ones"):
        unpad_frames(torch.zeros(1, 21, 1, 1, 1), 2)
