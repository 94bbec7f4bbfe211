"""Frames chosen by time and by stride: the clock of the result, ends, windows, scenes, short clips, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from cogvideox.config.schema import DataConfig
from cogvideox.data.timing import (
    ClipSpec,
    ClipTooShortError,
    average_fps,
    frame_indices,
    frames_available,
    num_windows,
)
from cogvideox.errors import DataError, ShapeError
from cogvideox.geometry import Geometry
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


def rates() -> st.SearchStrategy[np.ndarray]:
    """Times of files: 5 to 240 frames per second, film's and television's rates, and rates that change."""
    constant = st.one_of(st.floats(5, 240), st.sampled_from([24000 / 1001, 30000 / 1001, 60000 / 1001, 25.0]))
    steady = st.builds(lambda fps, n: np.arange(n) / fps, constant, st.integers(2, 1500))
    changing = st.lists(st.floats(1 / 240, 1 / 5), min_size=2, max_size=300)
    return st.one_of(steady, st.builds(lambda steps: np.concatenate([[0.0], np.cumsum(steps)]), changing))


@st.composite
def clips(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Times of a file and its cuts."""
    times = draw(rates())
    return times, sorted(draw(st.sets(st.integers(1, len(times) - 1), max_size=4)))


OPTIONS = st.fixed_dictionaries(
    {
        "fps": st.sampled_from([8.0, 16.0, 12.5]),
        "max_num_frames": st.sampled_from([1, 9, 13, 49]),
        "skip_frms_num": st.integers(0, 5),
        "frame_stride": st.one_of(st.none(), st.integers(1, 6)),
        "windows": st.sampled_from(["one", "all"]),
        "scene_cuts": st.sampled_from(["ignore", "avoid"]),
        "short_clips": st.sampled_from(["skip", "pad", "loop", "shorten"]),
    }
)


@settings(max_examples=50, deadline=None)
@given(clip=clips(), options=OPTIONS, start=st.floats(0, 1))
def test_every_choice_is_in_range_in_order_and_of_the_right_duration(
    clip: tuple[np.ndarray, list[int]], options: dict[str, object], start: float
) -> None:
    times, cuts = clip
    wanted = spec(**options)
    steps = np.diff(times)
    bounds = [0, *cuts, len(times)] if wanted.scene_cuts == "avoid" else [0, len(times)]
    count = num_windows(times, wanted, cuts)
    before = -1
    for window in range(count):
        choice = frame_indices(times, wanted, start, window, cuts)
        real = choice.indices[: len(choice.indices) - choice.num_padded]
        assert choice.indices.shape == (wanted.max_num_frames,) and choice.indices.dtype == np.int64
        assert choice.indices.min() == choice.indices[0] >= 0 and choice.indices.max() < len(times)
        assert np.all(np.diff(real) >= 0)
        scene = np.searchsorted(bounds, choice.indices, side="right")
        assert np.all(scene == scene[0])  # of one scene, padding too
        if wanted.frame_stride is not None:
            assert np.all(np.diff(real) == wanted.frame_stride)
        else:
            # Each frame is at most half a step from its moment, and so is the first one; the usual step where a clip
            # ends or starts. The last frame of a padded clip may be shown before its time.
            timed = real[:-1] if choice.num_padded and len(real) > 1 else real
            off = (times[timed] - times[timed[0]]) - np.arange(len(timed)) / wanted.fps
            assert np.max(np.abs(off)) <= max(steps.max(), np.median(steps)) * 1.02 + 2e-6
        if wanted.windows == "all":
            assert real[0] >= before  # end to end: a frame is in two only where the source is slower
            before = real[-1] if wanted.frame_stride is None else real[-1] + 1
    if count == 0:
        with pytest.raises(ClipTooShortError):
            frame_indices(times, wanted, start, 0, cuts)
        assert frames_available(times, wanted, cuts) < wanted.max_num_frames


@settings(max_examples=30, deadline=None)
@given(clip=clips(), options=OPTIONS)
def test_the_frames_that_are_available_are_the_most_that_fit(
    clip: tuple[np.ndarray, list[int]], options: dict[str, object]
) -> None:
    times, cuts = clip
    available = frames_available(times, spec(**options), cuts)
    fits = [
        num_windows(times, spec(**{**options, "short_clips": "skip", "max_num_frames": frames}), cuts) > 0
        for frames in range(1, 90, 4)
    ]
    assert fits == [frames <= available for frames in range(1, 90, 4)]


@settings(max_examples=30, deadline=None)
@given(num_frames=st.integers(1, 400), stride=st.integers(1, 5), frames=st.sampled_from([1, 5, 13]))
def test_windows_by_stride_are_those_of_a_sliding_list(num_frames: int, stride: int, frames: int) -> None:
    wanted = spec(max_num_frames=frames, frame_stride=stride, windows="all", short_clips="skip")
    times = np.arange(num_frames) / 30
    right = []
    rest = list(range(num_frames))
    while len(rest) >= (frames - 1) * stride + 1:
        right.append(rest[: (frames - 1) * stride + 1 : stride])
        rest = rest[frames * stride :]
    found = [
        frame_indices(times, wanted, window=window).indices.tolist() for window in range(num_windows(times, wanted))
    ]
    assert found == right


def test_a_stride_takes_every_nth_frame_whatever_the_rate() -> None:
    for fps in (12, 24000 / 1001, 60):
        choice = frame_indices(np.arange(60) / fps, spec(frame_stride=3, skip_frms_num=3))
        assert choice.indices.tolist() == list(range(3, 40, 3))
        assert choice.effective_fps == pytest.approx(fps / 3)
    with pytest.raises(ClipTooShortError, match="has 36 frames; 13 frames at stride 3 need 37"):
        frame_indices(np.arange(36) / 30, spec(frame_stride=3))
    padded = frame_indices(np.arange(30) / 30, spec(frame_stride=3, short_clips="pad"))
    assert padded.indices.tolist() == [*range(0, 30, 3), 29, 29, 29] and padded.num_padded == 3


def test_every_start_is_drawn_and_none_twice_as_often() -> None:
    times, cuts = np.arange(40) / 30, [10, 25]
    wanted = spec(max_num_frames=5, frame_stride=2, scene_cuts="avoid", random_start=True)
    starts = [int(frame_indices(times, wanted, (i + 0.5) / 1600, cuts=cuts).indices[0]) for i in range(1600)]
    counts = np.bincount(starts, minlength=40)
    possible = [*range(2), *range(10, 17), *range(25, 32)]
    assert np.nonzero(counts)[0].tolist() == possible
    assert np.ptp(counts[possible]) <= 1


def test_a_clip_is_kept_inside_its_scenes() -> None:
    times, wanted = np.arange(90) / 30, spec(max_num_frames=9, scene_cuts="avoid")  # 9 frames take 1 s
    assert frame_indices(times, wanted, cuts=[20]).indices[0] == 20  # the first scene is too short
    assert frame_indices(times, wanted, 1.0, cuts=[60]).indices.tolist()[0] == 29  # ends before the cut
    assert num_windows(times, spec(max_num_frames=9, scene_cuts="avoid", windows="all"), [20, 55]) == 2
    with pytest.raises(ClipTooShortError, match=r"the longest of its 4 scenes spans 0\.83 s \(26 frames at 30\.00 fps"):
        frame_indices(times, wanted, cuts=[25, 50, 76])
    padded = frame_indices(times, spec(max_num_frames=9, scene_cuts="avoid", short_clips="pad"), cuts=[25, 50, 76])
    assert padded.indices.min() == 50 and padded.indices.max() == 75
    assert frame_indices(times, spec(max_num_frames=9), cuts=[25, 50, 76]).indices[0] == 0


def test_a_loop_plays_again_from_the_start() -> None:
    looped = frame_indices(np.arange(5) / 8, spec(short_clips="loop"))
    assert looped.indices.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]
    assert looped.num_padded == 8 and looped.effective_fps == pytest.approx(8)
    # Frame 15 of 30 fps is 0.5 s, where the clip starts again: as if the file held it several times.
    fast = frame_indices(np.arange(15) / 30, spec(short_clips="loop"))
    assert fast.indices.tolist() == [i % 15 for i in frame_indices(np.arange(60) / 30, spec()).indices]
    assert frame_indices(np.arange(13) / 8, spec(short_clips="loop")).indices.tolist() == list(range(13))
    assert frame_indices(np.zeros(1), spec(short_clips="loop")).indices.tolist() == [0] * 13
    assert frame_indices(np.arange(10) / 8, spec(short_clips="loop", frame_stride=3)).indices.tolist()[:6] == [
        *(0, 3, 6, 9, 2, 5)
    ]


def test_a_short_clip_gets_the_longest_legal_count() -> None:
    deep = Geometry(4, 8, (2, 2, 2))
    for geometry, frames, right in ((Geometry(), 30, 29), (Geometry(), 3, 1), (deep, 30, 25), (deep, 8, 0)):
        assert geometry.longest_frames(frames) == right
        assert right == max((n for n in range(1, frames + 1) if not geometry.frames_problem(n)), default=0)
    nothing = spec(max_num_frames=49, short_clips="shorten", geometry=deep)
    with pytest.raises(ClipTooShortError, match=r"spans 0\.88 s"):
        frame_indices(np.arange(8) / 8, nothing)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_num_frames": 48}, ShapeError, "max_num_frames must be 4k [+] 1, not 48; nearest: 45 or 49"),
        ({"max_num_frames": 0}, ShapeError, "not 0; nearest: 1$"),
        ({"video_size": (0, 8)}, ShapeError, r"video_size is \[0, 8\]"),
        ({"fps": 0.0}, DataError, "fps is 0.0; it has to be above 0"),
        ({"skip_frms_num": 1.5}, DataError, "skip_frms_num is 1.5; it has to be a whole number"),
        ({"short_clips": "drop"}, DataError, "short_clips is 'drop'; it has to be one of error, skip, pad, loop"),
        ({"frame_stride": 0}, DataError, "frame_stride is 0; it has to be at least 1, or null"),
        ({"windows": "two"}, DataError, "windows is 'two'; it has to be one of one, all"),
        ({"scene_cuts": "no"}, DataError, "scene_cuts is 'no'; it has to be one of ignore, avoid"),
        ({"windows": "all", "random_start": True}, DataError, "random_start has no use with windows=all"),
        ({"geometry": Geometry(4, 8, (2, 2, 2)), "max_num_frames": 13}, ShapeError, "must be 8k [+] 1"),
    ],
)
def test_spec_refuses(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec(**changes)


def test_the_configuration_says_what_does_not_go_together() -> None:
    for changes, words in (
        ({"short_clips": "shorten"}, "shorten needs data.buckets"),
        ({"windows": "all", "random_start": True}, "has no use with windows: all"),
        ({"frame_stride": 0}, "must be at least 1"),
    ):
        problems = list(DataConfig(**changes).problems())  # type: ignore[arg-type]
        assert len(problems) == 1 and words in problems[0][1], problems
    assert not list(DataConfig(windows="all", scene_cuts="avoid", short_clips="loop", frame_stride=2).problems())
