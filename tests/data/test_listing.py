"""What the report says of clips that are used and of those that aren't, and what is remembered."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cogvideox.buckets import Buckets
from cogvideox.data.decode import ClipInfo, PyAVReader
from cogvideox.data.listing import find_samples, held_out_count, long_captions, trained_and_held_out
from cogvideox.data.media import Media
from cogvideox.data.report import SourceReport, describe
from cogvideox.data.sample import Sample
from cogvideox.data.sources.read import read_sources
from cogvideox.data.survey import Failure
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from cogvideox.geometry import Bucket
from data.clip_files import render_pair

SPEC = ClipSpec((480, 720), 8, 49, short_clips="skip")
GOOD = ClipInfo(720, 480, np.arange(60) / 8)


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
        (root / name).with_suffix(".txt").write_text("a caption")


def report_on(root: Path, clips: dict[str, ClipInfo | Failure], spec: ClipSpec = SPEC) -> SourceReport:
    """The report on clips of which no file is ever opened; names that aren't given weren't looked at."""
    put(root, *clips)

    def look(medias: Sequence[Media]) -> Iterator[tuple[Media, ClipInfo | Failure]]:
        return ((media, clips[Path(media.path).name]) for media in medias if Path(media.path).name in clips)

    return find_samples([root], spec, PyAVReader(), look=look).listed[1]


def lasting(seconds: float, fps: float = 24) -> ClipInfo:
    return ClipInfo(720, 480, np.arange(round(seconds * fps) + 1) / fps)


def test_crops_and_enlargements_are_spread_and_the_worst_named_first(tmp_path: Path) -> None:
    text = report_on(
        tmp_path,
        {
            "a.mp4": GOOD,
            "b.mp4": ClipInfo(576, 1024, GOOD.timestamps),
            "c.mp4": ClipInfo(180, 320, GOOD.timestamps),
            "d.mp4": ClipInfo(180, 340, GOOD.timestamps),
            "e.mp4": ClipInfo(1440, 240, GOOD.timestamps),
        },
    ).text()
    assert "data: 5 of 5 videos usable" in text
    assert (
        "at 480 x 720 (height x width) the crop keeps 25% to 100%, mean 47%; enlarged 1.00 to 4.00, mean 2.45" in text
    )
    lines = text.splitlines()
    (first,) = (i for i, line in enumerate(lines) if "cropped: 4 (kept)" in line)
    assert "e.mp4: 240 x 1440 pixels (height x width): 75% is cut off at its sides" in lines[first + 1]
    assert "d.mp4: 340 x 180 pixels (height x width): 65% is cut off above and below" in lines[first + 2]
    assert "what to do: data.video_size in the shape of the clips" in lines[first + 5]
    (first,) = (i for i, line in enumerate(lines) if "enlarged: 3 (kept)" in line)
    assert [line.rsplit(" ", 2)[-2] for line in lines[first + 1 : first + 4]] == ["4.0", "4.0", "2.0"]
    assert "take larger clips, or a smaller data.video_size" in lines[first + 4]


def test_ordinary_shapes_are_not_named(tmp_path: Path) -> None:
    sizes = {"wide.mp4": (1280, 720), "old.mp4": (640, 480), "square.mp4": (600, 600), "exact.mp4": (720, 480)}
    report = report_on(tmp_path, {name: ClipInfo(*size, GOOD.timestamps) for name, size in sizes.items()})
    assert report.num_samples == 4 and report.problems == ()


@pytest.mark.parametrize(
    ("short_clips", "seconds", "expected"),
    [
        ("skip", [3.2, 5.0], "they are left out; data.short_clips=pad repeats their last frame instead; data.max"),
        ("skip", [3.2, 5.0], "data.max_num_frames=25 takes all of them as they are; data.fps=15 does so too, with"),
        ("error", [3.2, 5.0], "data.short_clips=skip leaves them out, data.short_clips=pad repeats their last frame;"),
        ("skip", [0.5], "data.short_clips=pad repeats their last frame instead$"),  # too short for 9 frames
        ("skip", [1.0], "data.max_num_frames=9 takes all of them as they are$"),  # and 48 fps are more than it has
    ],
)
def test_the_remedy_for_short_clips_has_numbers_that_hold(
    tmp_path: Path, short_clips: str, seconds: list[float], expected: str
) -> None:
    clips: dict[str, ClipInfo | Failure] = {f"{index}.mp4": lasting(each) for index, each in enumerate(seconds)}
    report = report_on(tmp_path, clips, replace(SPEC, short_clips=short_clips))
    assert report.num_samples == 0 and len(report.of_kind("too short")) == len(seconds)
    assert f"what to do: {report.too_short_remedy}" in report.text()
    assert re.search(expected, report.too_short_remedy)
    for key in ("max_num_frames", "fps"):
        found = re.search(rf"data\.{key}=(\d+)", report.too_short_remedy)
        if found:
            spec = replace(SPEC, **{key: int(found[1])})
            assert report_on(tmp_path, clips, spec).num_samples == len(seconds)


def test_an_error_carries_the_remedy(tmp_path: Path) -> None:
    report = report_on(tmp_path, {"a.mp4": lasting(3.2), "b.mp4": GOOD}, replace(SPEC, short_clips="error"))
    with pytest.raises(DataError, match=r"1 of 2 videos can't be used, the first is .*a\.mp4: spans 3\.2") as caught:
        report.check()
    assert "data.max_num_frames=25 takes all of them" in str(caught.value)


def test_a_part_is_judged_by_what_is_certain(tmp_path: Path) -> None:
    put(tmp_path, *(f"rest{index:02d}.mp4" for index in range(96)))
    clips: dict[str, ClipInfo | Failure] = {"a.mp4": GOOD, "b.mp4": GOOD, "x.mp4": Failure("x"), "y.mp4": Failure("y")}
    report = report_on(tmp_path, clips)
    assert "data: 2 of 4 videos usable" in report.text() and "4 of 100 videos were looked at" in report.text()
    report.check()  # 2 of 100 are fewer than 5 %
    put(tmp_path / "short", "rest.mp4")
    report = report_on(tmp_path / "short", {"a.mp4": lasting(1.0)})
    assert report.num_not_looked_at == 1
    with pytest.raises(DataError, match="none of the videos is usable"):
        report.check()


def test_files_are_looked_at_once(tmp_path: Path) -> None:
    render_pair(tmp_path / "a.mp4", "a clip")
    looked: list[str] = []

    def look(medias: Sequence[Media]) -> Iterator[tuple[Media, ClipInfo | Failure]]:
        looked.extend(media.path for media in medias)
        return ((media, PyAVReader().probe(media)) for media in medias)

    spec = ClipSpec((48, 96), 8, 9)
    first, again = (find_samples([tmp_path], spec, PyAVReader(), look=look).listed for _ in range(2))
    assert first[0] == again[0] and first[1].text() == again[1].text()
    assert looked == [str(tmp_path / "a.mp4")]
    assert not any("sqlite" in name for name in os.listdir(tmp_path))
    render_pair(tmp_path / "a.mp4", "a clip", num_frames=61)
    find_samples([tmp_path], spec, PyAVReader(), look=look)
    assert len(looked) == 2


def test_what_was_seen_is_remembered_when_looking_is_interrupted(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4")

    def look(medias: Sequence[Media]) -> Iterator[tuple[Media, ClipInfo | Failure]]:
        yield medias[0], GOOD
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_samples([tmp_path], SPEC, PyAVReader(), look=look)
    samples, report, _ = find_samples([tmp_path], SPEC, PyAVReader(), look=lambda medias: ()).listed
    assert len(samples) == 1 and report.num_not_looked_at == 1


def test_held_out_clips_that_are_trained_on_are_named(tmp_path: Path) -> None:
    put(tmp_path / "train", "a.mp4", "b.mp4", "c.mp4")
    put(tmp_path / "valid", "new.mp4", "b.mp4")  # another file of the same name and content
    (tmp_path / "valid" / "soft.mp4").symlink_to(tmp_path / "train" / "a.mp4")
    os.link(tmp_path / "train" / "c.mp4", tmp_path / "valid" / "hard.mp4")
    train = read_sources([tmp_path / "train"], "empty").samples
    found = trained_and_held_out(train, read_sources([tmp_path / "valid"], "empty").samples)
    assert [(Path(problem.path).name, Path(problem.reason).name) for problem in found] == [
        ("hard.mp4", "c.mp4"),
        ("soft.mp4", "a.mp4"),
    ]
    assert [problem.reason for problem in trained_and_held_out(train, train)] == ["in train_data too"] * 3
    text = "\n".join(describe(found))
    assert "held out and trained on: 2 (kept)" in text and "their loss says nothing about new clips" in text
    (tmp_path / "train" / "a.mp4").unlink()
    assert [Path(problem.path).name for problem in trained_and_held_out(train, train)] == ["b.mp4", "c.mp4"]


def test_captions_that_will_be_cut() -> None:
    samples = [Sample(Media(f"{count}.mp4"), ("word " * count,), count) for count in (3, 6, 9)]
    problems = long_captions(samples, lambda captions: [len(caption.split()) + 1 for caption in captions], 6)
    assert [(problem.path, problem.reason) for problem in problems] == [
        ("6.mp4", "7 tokens, the text encoder reads 6"),
        ("9.mp4", "10 tokens, the text encoder reads 6"),
    ]
    assert [line.split(":")[0].strip() for line in describe(problems)] == ["long caption", "9.mp4", "6.mp4"]


def test_held_out_count() -> None:
    assert [held_out_count(20, share) for share in (0.01, 0.2, 0.9)] == [1, 4, 18]
    with pytest.raises(DataError, match=r"holding out 0.9 of 1 samples leaves none to train on"):
        held_out_count(1, 0.9)


def test_what_is_said_of_a_clip_is_of_its_own_bucket(tmp_path: Path) -> None:
    """Not of data.video_size and data.max_num_frames, which its bucket replaces."""
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text("a clip")
    slow = ClipInfo(200, 60, np.arange(20) / 4)  # wide, 4 frames per second, 33 of a result at 8
    buckets = Buckets((Bucket(9, 160, 48),))

    def look(medias: Sequence[Media]) -> Iterator[tuple[Media, ClipInfo]]:
        yield from ((each, slow) for each in medias)

    spec = ClipSpec((160, 480), 8, 49, short_clips="skip")
    report = find_samples([tmp_path], spec, PyAVReader(), look=look, buckets=buckets).listed.report
    assert "% is cut off at its sides" in report.text(), "at 160 x 480 it would be above and below"
    assert "4 of 9 frames repeat the one before" in report.text()
    assert "at 160 x 48 (height x width) the crop keeps" in report.text()
    assert "drawn anew" not in report.text()
    several = Buckets((Bucket(9, 48, 160), Bucket(17, 48, 160), Bucket(17, 96, 320), Bucket(9, 160, 48)), vary="both")
    report = find_samples([tmp_path], spec, PyAVReader(), look=look, buckets=several).listed.report
    drawn = "in every epoch each sample gets one of 3 buckets that suit it, drawn anew (data.buckets.vary); 3 in all, "
    assert drawn + "9x48x160 to 17x96x320" in report.text()
