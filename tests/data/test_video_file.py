"""Files whose header, times or data aren't usual: the survey says what reading finds, and damage is refused."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.decode import PyAVReader, open_reader
from cogvideox.data.media import VIDEO_SUFFIXES, Media
from cogvideox.data.survey import Survey
from cogvideox.data.timing import ClipSpec, FrameChoice, Timestamps, frame_indices
from cogvideox.data.video_file import FrameTimes
from cogvideox.errors import DataError
from data.clip_files import cut_without_encoding, numbered_frame, read_number, readers_here, render, write_frames
from numpy.typing import NDArray
from PIL import Image

READERS = readers_here()


def read(path: Path, reader: str = "pyav", count: int = 9, fps: float = 8) -> NDArray[np.uint8]:
    spec = ClipSpec((8, 8), fps, count, short_clips="pad")
    return open_reader(reader).read(Media(str(path)), lambda times: frame_indices(times, spec)).frames


def cut_between_key_frames(path: Path, codec: str) -> Path:
    """A transport stream that lost its beginning, as recordings do: 12 frames to a key frame, cut after 5."""
    options = {"x264-params": "scenecut=0"} if codec == "libx264" else {}
    whole = render(path.with_name(f"whole-{path.name}"), 40, 16, codec=codec, options=options)
    with av.open(str(whole)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(whole.read_bytes()[positions[5] :])
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips whose header doesn't say which frames are shown when, and one usual clip."""
    folder = tmp_path_factory.mktemp("clips")
    usual = render(folder / "usual.mp4", 48, 16, key_every=250)
    for number in (3, 10, 33):
        cut_without_encoding(usual, folder / f"cut{number}.mp4", number, 16)
    uneven = np.cumsum(np.where(np.arange(48) % 5, 1 / 30, 1 / 6))
    render(folder / "uneven.mp4", 48, 30, times_s=uneven)
    render(folder / "plain.mkv", 48, 16)
    render(folder / "plain.avi", 48, 16, codec="mpeg4")
    frames = [av.VideoFrame.from_ndarray(numbered_frame(n, 48, 96)).reformat(format="yuv420p") for n in range(24)]
    write_frames(folder / "fragments.mp4", frames, container_options={"movflags": "frag_keyframe+empty_moov"})
    cut_between_key_frames(folder / "h264.ts", "libx264")
    cut_between_key_frames(folder / "mpeg2.ts", "mpeg2video")
    return folder


NAMES = ("usual.mp4", "cut3.mp4", "cut10.mp4", "cut33.mp4", "uneven.mp4", "plain.mkv", "plain.avi", "fragments.mp4")
CUT_STREAMS = ("h264.ts", "mpeg2.ts")


@pytest.mark.parametrize("name", NAMES + CUT_STREAMS)
@pytest.mark.parametrize("reader", READERS)
def test_the_survey_says_what_reading_finds(clips: Path, name: str, reader: str) -> None:
    seen: list[Timestamps] = []
    choices: list[FrameChoice] = []
    spec = ClipSpec((8, 8), 11, 25, short_clips="pad")

    def choose(times: Timestamps) -> FrameChoice:
        seen.append(times)
        choices.append(frame_indices(times, spec))
        return choices[-1]

    info = open_reader(reader).probe(Media(str(clips / name)))
    open_reader(reader).read(Media(str(clips / name)), choose)
    assert all(np.array_equal(info.timestamps, times) for times in seen)
    survey = Survey.of(info, spec)
    assert (survey.num_repeated, survey.num_padded) == (choices[-1].num_repeated, choices[-1].num_padded)


@pytest.mark.parametrize("number", [3, 10, 33])
def test_hidden_frames_of_an_edit_list_are_neither_counted_nor_read(clips: Path, number: int) -> None:
    path = clips / f"cut{number}.mp4"
    assert open_reader("pyav").probe(Media(str(path))).num_frames == 48 - number
    for reader in READERS:
        assert [read_number(frame) for frame in read(path, reader, 5, 16)] == list(range(number, number + 5))


def test_too_short_is_said_by_the_survey_and_not_by_a_failing_run(clips: Path) -> None:
    decoder = ClipDecoder(ClipSpec((8, 8), 8, 9), PyAVReader())
    survey = Survey.of(decoder.reader.probe(Media(str(clips / "cut33.mp4"))), decoder.spec)
    assert survey.too_short is not None and "15 frames" in survey.too_short
    with pytest.raises(DataError, match=r"cut33\.mp4: spans 0\.88 s \(15 frames"):
        decoder.read(ReadJob(Media(str(clips / "cut33.mp4")), 0, decoder.spec.bucket, 0, 0))


@pytest.mark.parametrize("name", CUT_STREAMS)
@pytest.mark.parametrize("reader", READERS)
def test_a_stream_cut_between_key_frames_starts_where_it_can_be_decoded(clips: Path, name: str, reader: str) -> None:
    assert [read_number(frame) for frame in read(clips / name, reader, 5, 16)] == [12, 13, 14, 15, 16]
    assert open_reader(reader).probe(Media(str(clips / name))).num_frames == 28


def test_usual_files_are_surveyed_by_their_header(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FrameTimes, "scan")
    assert PyAVReader().probe(Media(str(clips / "usual.mp4"))).num_frames == 48


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "codec", "shown"),
    # libav gives no times before 0 where frames are reordered, and loses the first two of these frames, so that the
    # second group of 8 is the first that can be decoded.
    [("early.mkv", "libx264", range(8, 40)), ("early.webm", "libvpx", range(40))],
)
def test_matroska_may_start_before_zero(tmp_path: Path, reader: str, name: str, codec: str, shown: range) -> None:
    source = render(tmp_path / f"source-{name}", 40, 16, codec=codec, key_every=8)
    path = tmp_path / name
    with av.open(str(source)) as reading, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - 500, packet.dts - 500, stream
                writing.mux(packet)
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
        assert first.pts is None or first.pts < 0
    assert open_reader(reader).probe(Media(str(path))).num_frames == len(shown)
    assert [read_number(frame) for frame in read(path, reader, 29, 16)] == list(shown[:29])


CODECS = {
    ".m4v": "mpeg4",
    ".3gp": "mpeg4",
    ".webm": "libvpx",
    ".gif": "gif",
    ".mpg": "mpeg1video",
    ".mpeg": "mpeg2video",
    ".flv": "flv",
    ".wmv": "wmv2",
    ".ogv": "libvpx",
}


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    codec, pixel_format = CODECS.get(suffix, "libx264"), "rgb8" if suffix == ".gif" else "yuv420p"
    frames = [av.VideoFrame.from_ndarray(numbered_frame(n, 48, 96)).reformat(format=pixel_format) for n in range(40)]
    path = write_frames(tmp_path / f"clip{suffix}", frames, codec, 25)
    for reader in READERS:
        assert [read_number(frame) for frame in read(path, reader, 9, 25)] == list(range(9))
        info = open_reader(reader).probe(Media(str(path)))
        assert info.num_frames == 40 and info.fps == pytest.approx(25, rel=0.02)


def test_a_gif_shows_each_picture_as_long_as_its_delay(tmp_path: Path) -> None:
    pictures = [Image.fromarray(numbered_frame(number, 48, 96)) for number in range(12)]
    delays = [500, *[100] * 11]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=delays)
    shown = [read_number(frame) for frame in read(tmp_path / "a.gif", count=13, fps=20)]
    begins = np.cumsum([0, *delays[:-1]]) / 1000
    # Every 0.05 s: the picture that began nearest, the earlier one of two.
    assert shown == [int(np.argmin(np.round(np.abs(begins - number / 20), 6))) for number in range(13)]


@pytest.mark.parametrize("name", ["prores.mov", "av1.mkv", "av1.mp4", "dnxhd.mov", "hevc10.mp4"])
@pytest.mark.parametrize("reader", READERS)
def test_codecs_of_cameras_and_sites(tmp_path: Path, name: str, reader: str) -> None:
    codec, pixel_format, size, options = {
        "prores": ("prores_ks", "yuv422p10le", (48, 96), {}),
        "av1": ("libsvtav1", "yuv420p", (64, 96), {"preset": "12", "svtav1-params": "lp=1"}),
        "dnxhd": ("dnxhd", "yuv422p", (120, 256), {"profile": "dnxhr_sq"}),
        "hevc10": ("libx265", "yuv420p10le", (48, 96), {"x265-params": "log-level=none:pools=1"}),
    }[name.split(".")[0]]
    frames = (av.VideoFrame.from_ndarray(numbered_frame(n, *size)).reformat(format=pixel_format) for n in range(30))
    path = write_frames(tmp_path / name, frames, codec, 24, options=options)
    assert [read_number(frame) for frame in read(path, reader)] == list(range(0, 27, 3))
    assert open_reader(reader).probe(Media(str(path))).num_frames == 30


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
@pytest.mark.parametrize("reader", READERS)
def test_a_picture_that_changes_its_size_is_refused(tmp_path: Path, suffix: str, reader: str) -> None:
    for number, size in enumerate([(64, 96), (96, 64)]):
        render(tmp_path / f"{number}.ts", 16, 16, size, options={"bf": "0"})
    joined = tmp_path / f"joined{suffix}"
    names = [str(tmp_path / f"{number}.ts") for number in range(2)]
    with av.open(names[0]) as first, av.open(names[1]) as second, av.open(str(joined), "w") as writing:
        stream = writing.add_stream_from_template(first.streams.video[0])
        for number, part in enumerate((first, second)):
            for packet in part.demux(video=0):
                if packet.dts is not None:
                    packet.pts, packet.dts = packet.pts + 90_000 * number, packet.dts + 90_000 * number
                    packet.stream = stream
                    writing.mux(packet)
    assert len(read(joined, reader, 5, 16)) == 5  # before the change
    with pytest.raises(
        DataError, match=r"joined\.\w+: the picture's size changes from 96x64 to 64x96 at frame 16 \(1.0"
    ):
        read(joined, reader, 17, 16)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Textures that move over each other, of which every frame is read at 16 frames per second."""
    coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 24, 3), np.uint8)
    front, back = (np.asarray(Image.fromarray(part).resize((384, 128)), np.float64) for part in coarse)
    frames = []
    for number in range(33):
        pixels = 0.6 * front[:, 3 * number :][:, :192] + 0.4 * back[:, 192 - 2 * number :][:, :192]
        frames.append(av.VideoFrame.from_ndarray(pixels.astype(np.uint8)).reformat(format="yuv420p", threads=1))
    return write_frames(tmp_path_factory.mktemp("busy") / "busy.mp4", frames, fps=16)


def media_data(data: bytes) -> tuple[int, int]:
    start = data.index(b"mdat") + 4
    return start, start - 8 + int.from_bytes(data[start - 8 : start - 4], "big")


def test_flipped_bits_are_refused(busy: Path, tmp_path: Path) -> None:
    clean, data = read(busy, count=33, fps=16), busy.read_bytes()
    start, end = media_data(data)
    rng = np.random.default_rng(0)
    refused = changed = 0
    for _ in range(24):
        damaged = bytearray(data)
        damaged[rng.integers(start, end)] ^= 1 << int(rng.integers(8))
        (tmp_path / "flipped.mp4").write_bytes(damaged)
        try:
            changed += not np.array_equal(read(tmp_path / "flipped.mp4", count=33, fps=16), clean)
        except DataError as error:
            refused += 1
            assert "flipped.mp4: " in str(error)
    # H.264 has no checksums: some flips give another valid stream. Of real clips, 26 of 28 were refused.
    assert refused > changed, (refused, changed)


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_key_frame_is_named(busy: Path, tmp_path: Path, reader: str) -> None:
    data = bytearray(busy.read_bytes())
    with av.open(str(busy)) as container:
        first = container.streams.video[0].index_entries[0]
        middle = first.pos + first.size * 3 // 4  # behind what x264 says about itself
    data[middle : middle + 100] = bytes(100)
    (tmp_path / "hole.mp4").write_bytes(data)
    with pytest.raises(DataError, match=r"hole\.mp4: frame 0 \(0\.00 s\) is damaged"):
        read(tmp_path / "hole.mp4", reader)


def test_whatever_a_file_holds_the_error_is_ours(busy: Path, clips: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for source in (busy, *(clips / name for name in ("plain.mkv", "plain.avi", "mpeg2.ts"))):
        data = source.read_bytes()
        for number in range(12):
            damaged = bytearray(data)
            places = rng.integers(0, min(len(data), 2000 if number % 2 else len(data)), 10)
            for place in places:
                damaged[place] = rng.integers(256)
            path = tmp_path / f"damaged{source.suffix}"
            path.write_bytes(damaged)
            for action in (PyAVReader().probe, lambda media: read(Path(media.path))):
                try:
                    action(Media(str(path)))
                except DataError as error:
                    assert str(error).startswith(f"{path}: ")


def test_clips_that_would_fill_the_memory_are_refused(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogvideox.data.decode._MOST_BYTES", 100_000)
    with pytest.raises(
        DataError, match=r"usual\.mp4: 9 frames of 96x48 take 0\.0 GB of memory, at most 0\.0001 are used"
    ):
        read(clips / "usual.mp4")
