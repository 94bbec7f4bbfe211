"""What is said of a file before it is read: the frames that reading will give, the crop, the enlargement."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cogvideox.data.clips import Clip, ClipDecoder, ReadJob
from cogvideox.data.decode import ClipInfo, PyAVReader
from cogvideox.data.media import Media
from cogvideox.data.survey import Failure, Survey, look_here
from cogvideox.data.timing import ClipSpec
from data.clip_files import read_number, render, render_audio
from data.fake_readers import ScriptedReader

SPEC = ClipSpec((480, 720), 8, 49)


def clip(height: int, width: int, num_frames: int = 60, fps: float = 8) -> ClipInfo:
    return ClipInfo(width, height, np.arange(num_frames) / fps)


@pytest.mark.parametrize(
    ("size", "kept", "enlarged"),
    [
        ((480, 720), 1.0, 1.0),
        ((960, 1440), 1.0, 0.5),
        ((320, 180), 0.375, 4.0),  # portrait, 9:16, on 2:3
        ((1280, 720), 0.375, 1.0),
        ((720, 1280), 0.84375, 2 / 3),
        ((500, 500), 2 / 3, 1.44),
        ((100, 720), 100 / 480, 4.8),
    ],
)
def test_crop_and_enlargement(size: tuple[int, int], kept: float, enlarged: float) -> None:
    survey = Survey.of(clip(*size), SPEC)
    assert survey.kept_share == pytest.approx(kept)
    assert survey.enlargement == pytest.approx(enlarged)


@pytest.mark.parametrize(("num_frames", "fps"), [(30, 30), (20, 5), (18, 8), (9, 8), (5, 8), (40, 24), (1, 8)])
@pytest.mark.parametrize("skip", [0, 3])
def test_what_is_said_is_what_is_read(tmp_path: Path, num_frames: int, fps: int, skip: int) -> None:
    spec = ClipSpec((48, 96), 8, 9, skip_frms_num=skip, short_clips="pad")
    path = Media(str(render(tmp_path / "x.mp4", num_frames=num_frames, fps=fps)))
    survey = Survey.of(PyAVReader().probe(path), spec)
    read = ClipDecoder(spec, PyAVReader()).run(ReadJob(path, 1, 0, 0))
    assert isinstance(read, Clip)
    numbers = [read_number(frame.permute(1, 2, 0).numpy()) for frame in read.video]
    assert survey.num_repeated + survey.num_padded == 9 - len(set(numbers))
    assert (survey.num_padded > 0) == (num_frames / fps < 1)


def test_too_short_is_known_as_such(tmp_path: Path) -> None:
    path = Media(str(render(tmp_path / "x.mp4", num_frames=20, fps=30)))
    assert Survey.of(PyAVReader().probe(path), replace(SPEC, max_num_frames=9)).too_short is not None
    (result,) = dict(look_here([Media(str(render_audio(tmp_path / "a.mp4")))], PyAVReader(), 600.0)).values()
    assert isinstance(result, Failure) and not result.too_short


def test_looking_stops_when_the_time_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("cogvideox.data.survey.time.monotonic", lambda: float(next(now)))
    paths = [Media(str(tmp_path / name)) for name in "abcde"]
    assert [path for path, _ in look_here(paths, ScriptedReader(), 600.0, 3.5, num_threads=1)] == paths[:3]


def test_a_file_that_takes_all_the_time_was_not_looked_at(tmp_path: Path) -> None:
    hanging = Media(str(tmp_path / "hang"))
    started = time.monotonic()
    others = [Media(str(tmp_path / name)) for name in "abc"]
    results = dict(look_here([hanging, *others], ScriptedReader(), 60.0, budget_s=2.0, num_threads=2))
    assert sorted(results, key=lambda media: media.path) == others  # one thread hangs, the other goes on
    (result,) = look_here([hanging], ScriptedReader(), 0.2)
    assert result == (hanging, Failure(f"{hanging.path}: not decoded within clip_timeout_s=0.2 s"))
    assert time.monotonic() - started < 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_a_reader_is_a_failure(tmp_path: Path) -> None:
    class Mistaken(ScriptedReader):
        def probe(self, media: Media) -> ClipInfo:
            raise ZeroDivisionError

    paths = [Media(str(tmp_path / name)) for name in "ab"]
    expected = {path: Failure(f"{path.path}: the decoder failed, see the traceback above") for path in paths}
    before = set(threading.enumerate())
    assert dict(look_here(paths, Mistaken(), 600.0)) == expected
    for thread in set(threading.enumerate()) - before:
        thread.join()  # its message belongs to this test
