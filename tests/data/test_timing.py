"""Frames chosen by time: the clock of the result, ends, padding, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from cogvideox.data.timing import ClipSpec, ClipTooShortError, average_fps, frame_indices
from cogvideox.errors import DataError, ShapeError
from hypothesis import given, settings
from hypothesis import strategies as st


def spec(**changes: object) -> ClipSpec:
    values: dict[str, object] = {"video_size": (8, 8), "fps": 8.0, "max_num_frames": 13, **changes}
    return ClipSpec(**values)  # type: ignore[arg-type]


def test_thirty_fps_gives_every_third_or_fourth_frame() -> None:
    choice = frame_indices(np.arange(60) / 30, spec())
    assert choice.indices.tolist() == [0, 4, 7, 11, 15, 19, 22, 26, 30, 34, 37, 41, 45]
    assert choice.effective_fps == pytest.approx(8.0)
    assert (choice.num_repeated, choice.num_padded) == (0, 0)


def test_film_rate_is_not_rounded_to_a_stride() -> None:
    """At 24000/1001 fps an integer stride drifts; by time the clock of the result stays right to half a
    frame.
    """
    rate = 24000 / 1001
    choice = frame_indices(np.arange(200) / rate, spec(max_num_frames=49))
    assert choice.indices[-1] == 144  # 6 s * 23.976
    assert np.max(np.abs(choice.indices / rate - np.arange(49) / 8)) <= 0.5 / rate + 1e-9


def test_variable_rate_takes_the_frame_nearest_in_time() -> None:
    times = np.array([0.0, 0.1, 0.13, 0.2, 0.24, 0.30, 0.5, 0.52, 0.7])
    choice = frame_indices(times, spec(max_num_frames=5))
    assert choice.indices.tolist() == [0, 2, 4, 5, 6]


@pytest.mark.parametrize("noise", [0.0, 2e-5, -2e-5])
def test_ties_do_not_depend_on_rounding_of_timestamps(noise: float) -> None:
    times = np.arange(60) / 30
    times[1:] += noise * np.resize([1, -1], 59)
    assert frame_indices(times, spec()).indices.tolist() == frame_indices(np.arange(60) / 30, spec()).indices.tolist()


def test_skipped_frames_are_never_used() -> None:
    choice = frame_indices(np.arange(60) / 30, spec(skip_frms_num=3.0))
    assert choice.indices[0] == 3
    assert frame_indices(np.arange(60) / 30, spec(skip_frms_num=3.0), start_fraction=1.0).indices[-1] == 56


def test_exactly_long_enough() -> None:
    assert frame_indices(np.arange(13) / 8, spec()).indices.tolist() == list(range(13))


def test_slightly_slow_source_is_long_enough_and_one_frame_less_is_not() -> None:
    assert frame_indices(np.arange(13) / 7.992, spec()).indices.tolist() == list(range(13))
    with pytest.raises(
        ClipTooShortError, match=r"spans 1\.38 s \(12 frames at 8\.00 fps\); 13 frames at 8 fps need 1\.50 s"
    ):
        frame_indices(np.arange(12) / 8, spec())


@pytest.mark.parametrize(
    ("num_frames", "source_fps", "first", "last"),
    [
        (49, 8, 0, 48),  # a data set prepared for these models: nothing to spare
        (50, 8, 0, 48),
        (51, 8, 1, 49),
        (54, 8, 2, 50),
        (55, 8, 3, 51),
        (100, 8, 3, 51),
        (181, 30, 0, 180),
        (186, 30, 2, 182),
        (187, 30, 3, 183),
        (25, 4, 0, 24),  # slower than the result: every frame is shown twice
        (31, 4, 3, 27),
    ],
)
def test_frames_are_dropped_as_far_as_there_are_some_to_spare(
    num_frames: int, source_fps: float, first: int, last: int
) -> None:
    choice = frame_indices(np.arange(num_frames) / source_fps, spec(max_num_frames=49, skip_frms_num=3))
    assert (choice.indices[0], choice.indices[-1]) == (first, last)
    assert choice.num_padded == 0


def test_a_random_start_keeps_off_the_dropped_frames() -> None:
    for num_frames, dropped in ((49, 0), (51, 1), (52, 1), (60, 3)):
        choices = [
            frame_indices(np.arange(num_frames) / 8, spec(max_num_frames=49, skip_frms_num=3), start).indices
            for start in (0.0, 0.5, 1.0)
        ]
        assert min(choice[0] for choice in choices) == dropped
        assert max(choice[-1] for choice in choices) == num_frames - 1 - dropped
        assert all(np.all(np.diff(choice) == 1) for choice in choices)


def test_dropping_frames_never_makes_a_clip_too_short() -> None:
    for num_frames in range(1, 30):
        times = np.arange(num_frames) / 8
        if num_frames < 13:
            with pytest.raises(ClipTooShortError):
                frame_indices(times, spec(skip_frms_num=10))
            padded = frame_indices(times, spec(skip_frms_num=10, short_clips="pad"))
            assert padded.indices.tolist() == [min(i, num_frames - 1) for i in range(13)]
            assert padded.num_padded == 13 - num_frames
        else:
            assert len(set(frame_indices(times, spec(skip_frms_num=10)).indices)) == 13


def test_one_frame_of_a_clip_is_not_its_first() -> None:
    assert frame_indices(np.arange(60) / 8, spec(max_num_frames=1, skip_frms_num=3)).indices.tolist() == [3]
    assert frame_indices(np.arange(4) / 8, spec(max_num_frames=1, skip_frms_num=3)).indices.tolist() == [1]
    assert frame_indices(np.zeros(1), spec(max_num_frames=1, skip_frms_num=3)).indices.tolist() == [0]


def test_padding_repeats_the_last_frame_at_the_right_speed() -> None:
    choice = frame_indices(np.arange(30) / 30, spec(short_clips="pad"))
    assert choice.indices.tolist() == [0, 4, 7, 11, 15, 19, 22, 26, 29, 29, 29, 29, 29]
    assert choice.num_padded == 4  # the first 29 is a frame of its own
    assert choice.effective_fps == pytest.approx(8.0, rel=0.1)


def test_a_single_frame_can_be_padded() -> None:
    choice = frame_indices(np.zeros(1), spec(short_clips="pad"))
    assert choice.indices.tolist() == [0] * 13
    assert (choice.num_padded, choice.effective_fps) == (12, 0.0)
    assert average_fps(np.zeros(1)) == 0.0


def test_slow_source_repeats_frames_and_keeps_the_speed() -> None:
    choice = frame_indices(np.arange(20) / 4, spec())
    assert choice.indices.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert choice.num_repeated == 6
    assert choice.effective_fps == pytest.approx(8.0)


@settings(max_examples=60, deadline=None)
@given(
    intervals=st.lists(st.floats(0.005, 0.2), min_size=10, max_size=120),
    fps=st.floats(4.0, 30.0),
    skip=st.integers(0, 5),
    start=st.floats(0.0, 1.0),
)
def test_each_frame_is_the_nearest_and_inside(intervals: list[float], fps: float, skip: int, start: float) -> None:
    times = np.concatenate([[0.0], np.cumsum(intervals)])
    wanted = spec(fps=fps, skip_frms_num=skip, short_clips="pad")
    choice = frame_indices(times, wanted, start)
    assert np.all(np.diff(choice.indices) >= 0)
    half = np.median(np.diff(times)) / 2 + 1e-6
    enough = [k for k in range(skip + 1) if times[len(times) - 1 - k] - times[k] + half >= wanted.duration_s]
    drop = max(enough, default=0)
    inside = times[drop : len(times) - drop]
    assert choice.indices[0] >= drop and choice.indices[-1] <= len(times) - 1 - drop
    spare = inside[-1] - inside[0] - wanted.duration_s
    targets = inside[0] + start * max(spare, 0.0) + np.arange(13) / fps
    best = np.min(np.abs(inside[None] - targets[:, None]), axis=1)
    assert np.all(np.abs(times[choice.indices] - targets) <= best + 0.01 * np.median(np.diff(times)) + 1e-9)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_num_frames": 48}, ShapeError, "max_num_frames must be 4k [+] 1, not 48; nearest: 45 or 49"),
        ({"max_num_frames": 0}, ShapeError, "not 0; nearest: 1$"),
        ({"video_size": (0, 8)}, ShapeError, r"video_size is \[0, 8\]"),
        ({"fps": 0.0}, DataError, "fps is 0.0; it has to be above 0"),
        ({"skip_frms_num": 1.5}, DataError, "skip_frms_num is 1.5; it has to be a whole number"),
        ({"short_clips": "drop"}, DataError, "short_clips is 'drop'; it has to be one of error, skip, pad"),
    ],
)
def test_spec_refuses(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec(**changes)
