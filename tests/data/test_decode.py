"""Both readers against clips whose frames show their own number."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cogvideox.data.decode import PyAVReader, VideoReader, open_reader
from cogvideox.data.media import Media
from cogvideox.data.timing import ClipSpec, FrameChoice, Timestamps, frame_indices
from cogvideox.errors import DataError
from data.clip_files import cut_without_encoding, read_number, readers_here, render, render_audio

READERS = readers_here()


def numbers(
    reader: VideoReader, path: Path, fps: float = 8, count: int = 9, start: float = 0.0
) -> tuple[list[int], list[int], str]:
    """Numbers that the frames show, the indices that were asked for, and who read."""

    def choose(timestamps: Timestamps) -> FrameChoice:
        return frame_indices(timestamps, ClipSpec((8, 8), fps, count), start)

    decoded = reader.read(Media(str(path)), choose)
    return [read_number(frame) for frame in decoded.frames], decoded.choice.indices.tolist(), decoded.reader


# Name, what to render, and whether decord reads it itself.
FILES = {
    "h264.mp4": ({}, True),
    "h264.mov": ({"key_every": 250}, True),
    "h264.mkv": ({"options": {"x264-params": "bframes=5:b-pyramid=normal:open-gop=1"}}, True),
    "H264.MP4": ({"fps": Fraction(24000, 1001)}, True),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, True),
    "variable.mp4": ({"times_s": np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 60))}, True),
    "hevc.mp4": ({"codec": "libx265", "options": {"x265-params": "log-level=none"}}, False),
    "mpeg4.mp4": ({"codec": "mpeg4", "options": {"bf": "2"}}, False),
    "mpeg4.avi": ({"codec": "mpeg4"}, False),
    "h264.avi": ({}, False),
    "narrow.mp4": ({"size": (64, 48)}, False),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, (arguments, _) in FILES.items():
        render(folder / name, **arguments)  # type: ignore[arg-type]
    cut_without_encoding(folder / "h264.mp4", folder / "cut.mp4", num_frames=10, fps=30)
    return folder


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("reader", READERS)
def test_frames_are_the_chosen_ones(clips: Path, name: str, reader: str) -> None:
    for fps, start in ((8, 0.0), (8, 1.0), (5, 0.4), (12, 0.7), (29.97, 0.9)):
        shown, chosen, who = numbers(open_reader(reader), clips / name, fps, 9, start)
        assert shown == chosen
        itself = {"decord": FILES[name][1], "torchcodec": not name.endswith(".avi")}
        assert who == (reader if itself.get(reader) else "pyav")


@pytest.mark.parametrize("reader", READERS)
def test_frames_before_the_start_that_an_edit_list_sets_are_not_counted(clips: Path, reader: str) -> None:
    shown, chosen, _ = numbers(open_reader(reader), clips / "cut.mp4")
    assert shown == [index + 10 for index in chosen]


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "variable.mp4", "vp9.webm"])
def test_readers_agree_on_pixels(clips: Path, name: str) -> None:
    def choose(timestamps: Timestamps) -> FrameChoice:
        return frame_indices(timestamps, ClipSpec((8, 8), 8, 9))

    first, *others = (open_reader(reader).read(Media(str(clips / name)), choose).frames for reader in READERS)
    for other in others:
        assert first.shape == other.shape == (9, 48, 96, 3) and first.dtype == other.dtype == np.uint8
        assert np.max(np.abs(first.astype(int) - other.astype(int))) <= 2


def test_skipping_inside_the_codec_changes_nothing(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(timestamps: Timestamps) -> FrameChoice:
        return frame_indices(timestamps, ClipSpec((8, 8), 8, 13))

    for name in ("h264.mp4", "h264.mkv", "hevc.mp4", "mpeg4.mp4"):
        thrifty = PyAVReader().read(Media(str(clips / name)), choose).frames
        with monkeypatch.context() as patch:
            patch.setattr("cogvideox.data.decode._SKIPPING", ())
            assert np.array_equal(thrifty, PyAVReader().read(Media(str(clips / name)), choose).frames)


def test_seeking_lands_before_the_first_frame(tmp_path: Path) -> None:
    path = render(tmp_path / "long.mp4", num_frames=250, key_every=25)
    for start in (0.2, 0.37, 0.5, 0.93, 1.0):
        for reader in READERS:
            shown, chosen, _ = numbers(open_reader(reader), path, 30, 5, start)
            assert shown == chosen


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, reader: str, rotation: int) -> None:
    path = render(tmp_path / "turned.mp4", num_frames=10, fps=8, rotation=rotation)
    decoded = open_reader(reader).read(Media(str(path)), lambda times: frame_indices(times, ClipSpec((8, 8), 8, 5)))
    upright = np.rot90(decoded.frames, k=-rotation // 90, axes=(1, 2))
    assert [read_number(frame) for frame in upright] == [0, 1, 2, 3, 4]
    info = open_reader(reader).probe(Media(str(path)))
    assert (info.height, info.width) == decoded.frames.shape[1:3]


@pytest.mark.parametrize("name", FILES)
def test_probe(clips: Path, name: str) -> None:
    info = open_reader("decord").probe(Media(str(clips / name)))
    assert info.num_frames == 60
    assert (info.height, info.width) == FILES[name][0].get("size", (48, 96))  # type: ignore[attr-defined]
    expected = {"H264.MP4": 24000 / 1001, "variable.mp4": 59 / (FILES["variable.mp4"][0].get("times_s", [0, 0])[-1])}  # type: ignore[attr-defined]
    assert info.fps == pytest.approx(expected.get(name, 30.0), rel=0.03)


@pytest.mark.parametrize("size", [(37, 51), (46, 62)])
@pytest.mark.parametrize("reader", READERS)
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], reader: str) -> None:
    # 4:2:0 has no odd sizes: VP9 stores the true size beside the coded one.
    path = render(tmp_path / "odd.webm", 20, 10, size, "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"})
    decoded = open_reader(reader).read(Media(str(path)), lambda times: frame_indices(times, ClipSpec((8, 8), 10, 5)))
    assert decoded.frames.shape == (5, *size, 3)
    assert [read_number(frame) for frame in decoded.frames] == [0, 1, 2, 3, 4]


def broken_files(folder: Path) -> dict[str, str]:
    """Paths of files that can't be read, and what has to be said about each."""
    good = render(folder / "good.mp4", faststart=True, options={"crf": "1"}).read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "headless.mp4").write_bytes(render(folder / "plain.mp4").read_bytes()[:2000])
    (folder / "truncated.mp4").write_bytes(good[: len(good) * 2 // 3])
    render_audio(folder / "sound.mp4")
    (folder / "folder.mp4").mkdir()
    return {
        "empty.mp4": r"empty\.mp4: is empty \(0 bytes\)",
        "noise.mp4": r"noise\.mp4: can't be read as a video: Invalid data",
        "headless.mp4": r"headless\.mp4: can't be read as a video: Invalid data",
        "truncated.mp4": r"truncated\.mp4: (is truncated|.*frames are missing|spans|can't be read)",
        "sound.mp4": r"sound\.mp4: holds no video stream",
        "folder.mp4": r"folder\.mp4: is not a file",
        "absent.mp4": r"absent\.mp4: is not a file",
    }


@pytest.mark.parametrize("reader", READERS)
def test_broken_files_are_named_with_a_reason(tmp_path: Path, reader: str) -> None:
    for name, message in broken_files(tmp_path).items():
        with pytest.raises(DataError, match=message):
            open_reader(reader).probe(Media(str(tmp_path / name)))
        if name != "truncated.mp4":
            with pytest.raises(DataError, match=message):
                numbers(open_reader(reader), tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_a_truncated_file_fails_where_it_ends(tmp_path: Path, reader: str) -> None:
    broken_files(tmp_path)
    with pytest.raises(DataError):
        numbers(open_reader(reader), tmp_path / "truncated.mp4", 30, 57)


def test_unknown_reader() -> None:
    with pytest.raises(DataError, match="reader is 'opencv'; it has to be one of pyav, decord, torchcodec"):
        open_reader("opencv")


LIBRARY_ABSENT = "libavutil.so.60: cannot open shared object file"
MISSING = {
    "": "needs the package torchcodec: pip install torchcodec",
    f"raise OSError('{LIBRARY_ABSENT}')": f"can't load its libraries: {LIBRARY_ABSENT}. It needs FFmpeg's",
    "raise RuntimeError('Could not load it. Likely causes:\\n 1.')": "can't load its libraries: Could not load it. It",
}


@pytest.mark.parametrize("code", MISSING)
def test_torchcodec_without_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    if not code:
        monkeypatch.setitem(sys.modules, "torchcodec", None)  # type: ignore[arg-type]
    if code:  # what importing it raises, in its versions
        (tmp_path / "torchcodec").mkdir()
        (tmp_path / "torchcodec/__init__.py").write_text("")
        (tmp_path / "torchcodec/decoders.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=MISSING[code]) as caught:
        open_reader("torchcodec")
    assert "data.reader=pyav" in str(caught.value)
