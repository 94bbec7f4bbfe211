"""From folders to a data set: the survey, the report and its verdict, held-out samples."""

from __future__ import annotations

import logging
import pickle
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cogvideox.data.dataset import VideoDataset, build_dataset, split_held_out
from cogvideox.data.decode import PyAVReader
from cogvideox.data.listing import find_samples
from cogvideox.data.report import Problem, SourceReport, Spread
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from data.clip_files import render, render_pair
from data.fake_readers import ScriptedReader

SPEC = ClipSpec((16, 24), 8, 9)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything."""
    root = tmp_path_factory.mktemp("mixed")
    render_pair(root / "good.mp4", "a good clip")
    render_pair(root / "long.mp4", "one two three four five six")
    render_pair(root / "lines.mp4", "first line\nsecond line")
    render_pair(root / "silent.mp4", "")
    render_pair(root / "short.mp4", "short", num_frames=20)
    render_pair(root / "slow.mp4", "slow", num_frames=20, fps=5)
    render(root / "alone.mp4")
    (root / "empty.mp4").write_bytes(b"")
    (root / "empty.txt").write_text("an empty file")
    (root / "orphan.txt").write_text("no video")
    return root


def names(problems: list[Problem]) -> list[str]:
    return [Path(problem.path).name for problem in problems]


def test_one_report_names_everything(mixed: Path) -> None:
    samples, report, _ = find_samples([mixed], SPEC, PyAVReader()).listed
    expected = {
        "missing caption": ("alone.mp4", "error"),
        "unreadable video": ("empty.mp4", "left out"),
        "too short": ("short.mp4", "error"),
        "empty caption": ("silent.mp4", "kept"),
        "multi-line caption": ("lines.mp4", "kept"),
        "slow source": ("slow.mp4", "kept"),
        "caption without video": ("orphan.txt", "kept"),
    }
    assert {problem.kind: (Path(problem.path).name, problem.effect) for problem in report.problems} == expected
    assert (report.num_videos, report.num_samples) == (8, 5)
    assert [Path(sample.media.path).name for sample in samples] == [
        "good.mp4",
        "lines.mp4",
        "long.mp4",
        "silent.mp4",
        "slow.mp4",
    ]
    assert (
        report.source_fps is not None
        and report.source_fps.smallest == pytest.approx(5)
        and report.source_fps.largest == pytest.approx(30)
    )
    assert report.effective_fps is not None and report.effective_fps.smallest > 7.5
    text = report.text()
    for kind, (name, _) in expected.items():
        assert kind in text and name in text
    assert "5.00 fps: 3 of 9 frames repeat the one before" in text
    with pytest.raises(
        DataError, match=r"2 of 8 videos can't be used, the first is .*alone\.mp4: no alone\.txt"
    ) as caught:
        report.check()
    assert "data.missing_captions=empty" in str(caught.value) and "data.short_clips=skip" in str(caught.value)


def test_short_clips_skipped_or_padded(mixed: Path) -> None:
    spec = replace(SPEC, short_clips="skip")
    samples, report, _ = find_samples([mixed], spec, PyAVReader(), missing_captions="empty").listed
    assert "short.mp4" not in {Path(sample.media.path).name for sample in samples}
    assert [(problem.effect) for problem in report.of_kind("too short")] == ["left out"]
    spec = replace(SPEC, short_clips="pad")
    samples, report, _ = find_samples([mixed], spec, PyAVReader(), missing_captions="empty").listed
    assert "short.mp4" in {Path(sample.media.path).name for sample in samples}
    assert names(report.of_kind("padded")) == ["short.mp4"]
    assert report.of_kind("padded")[0].reason == "its last frame is repeated 3 times"
    with pytest.raises(DataError, match=r"1 of 8 videos can't be read, more than max_failed_share=0\.05 allows"):
        report.check()


def test_build_dataset_logs_the_report(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = ClipSpec((16, 24), 8, 9, short_clips="skip")
    with caplog.at_level(logging.INFO, logger="cogvideox"):
        dataset = build_dataset([mixed], spec, missing_captions="empty", max_failed_share=0.2, num_workers=0)
    assert "data: 6 of 8 videos usable" in caplog.text and "unreadable video: 1 (left out)" in caplog.text
    assert len(dataset) == 6 and dataset.reader.name == "pyav"
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.samples == dataset.samples and copy.fingerprint() == dataset.fingerprint()


def test_looking_in_processes_at_a_hanging_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(52):
        (tmp_path / f"{index:02d}.mp4").write_bytes(b"x")
    (tmp_path / "probe-hang.mp4").write_bytes(b"x")
    (tmp_path / "unreadable.mp4").write_bytes(b"x")
    started, real = tmp_path / "probe-hang.mp4.reads", time.monotonic
    monkeypatch.setattr("cogvideox.data.pool.time.monotonic", lambda: real() + 1000 * started.exists())
    with caplog.at_level(logging.INFO, logger="cogvideox"):
        dataset = build_dataset([tmp_path], SPEC, reader=ScriptedReader(), missing_captions="empty", num_workers=1)
    assert [Path(sample.media.path).name for sample in dataset.samples] == [f"{index:02d}.mp4" for index in range(52)]
    assert "probe-hang.mp4: not decoded within clip_timeout_s=60 s" in caplog.text
    assert "unreadable.mp4: no good" in caplog.text


def test_nothing_left(tmp_path: Path) -> None:
    render_pair(tmp_path / "short.mp4", "short", num_frames=10)
    with pytest.raises(DataError, match="none of the videos is usable"):
        build_dataset([tmp_path], ClipSpec((16, 24), 8, 9, short_clips="skip"), num_workers=0)


def test_refused_share(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"max_failed_share is 1.5; it has to lie between 0 and 1"):
        build_dataset([tmp_path], SPEC, max_failed_share=1.5)


def test_long_lists_are_cut_and_can_be_had_in_full() -> None:
    problems = tuple(Problem("empty caption", f"{index}.mp4", "why", effect="kept") for index in range(50))
    report = SourceReport(("root",), 50, 50, problems, Spread(1, 2, 3), Spread(8, 8, 8), 0.05)
    assert "empty caption: 50 (kept)" in report.text() and "and 30 more" in report.text()
    assert "49.mp4: why" in report.text(limit=None) and "more" not in report.text(limit=None)
    assert "source fps 1.00 to 3.00, mean 2.00; effective fps 8.00" in report.text()


def scripted(tmp_path: Path, count: int) -> VideoDataset:
    for index in range(count):
        (tmp_path / f"{index}.mp4").write_bytes(b"x")
    return build_dataset([tmp_path], SPEC, reader=ScriptedReader(), missing_captions="empty", num_workers=0)


def test_held_out_samples_stay_the_same_when_data_grows(tmp_path: Path) -> None:
    dataset = scripted(tmp_path, 20)
    train, held_out = split_held_out(dataset, 0.2)
    assert (len(train), len(held_out)) == (16, 4)
    assert set(train.samples) | set(held_out.samples) == set(dataset.samples)
    assert dataset.first(4).samples == held_out.samples and len(dataset.first(100)) == 20
    _grown, more = split_held_out(scripted(tmp_path, 25), 0.2)
    assert len(more) == 5 and len(set(more.samples) & set(held_out.samples)) >= 2
    assert dataset.fingerprint() != train.fingerprint()
    with pytest.raises(DataError, match="the held-out share is 1; it has to lie between 0 and 1"):
        split_held_out(dataset, 1.0)
    with pytest.raises(DataError, match=r"holding out 0.9 of 1 samples leaves none to train on"):
        split_held_out(dataset.first(1), 0.9)
