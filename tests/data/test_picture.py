"""What is read is what players show: each right value is worked out here, by other means than the reader's."""

from __future__ import annotations

import itertools
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from cogvideox.data.decode import open_reader
from cogvideox.data.images import read_image
from cogvideox.data.media import Media
from cogvideox.data.timing import ClipSpec, frame_indices
from cogvideox.errors import DataError
from data.clip_files import flat_frame, readers_here, write_frames
from numpy.typing import NDArray
from PIL import Image

READERS = readers_here()
COLOUR = (200, 50, 40)


def read(path: Path, reader: str = "pyav", count: int = 5) -> NDArray[np.uint8]:
    spec = ClipSpec((8, 8), 8, count, short_clips="pad")
    frames = open_reader(reader).read(Media(str(path)), lambda times: frame_indices(times, spec)).frames
    info = open_reader(reader).probe(Media(str(path)))
    assert (info.height, info.width) == frames.shape[1:3]
    return frames


def rgb(pixels: NDArray[np.uint8]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")


def corners() -> NDArray[np.uint8]:
    """uint8 [64, 96, 3], another grey in each quarter."""
    return np.kron(np.array([[[30], [90]], [[150], [220]]], np.uint8), np.ones((32, 48, 3), np.uint8))


# a, b, c, d of the display matrix: x' = a x + c y, y' = b x + d y.
STRAIGHT = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)]
CROSSED = [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)]


@pytest.mark.parametrize("matrix", STRAIGHT + CROSSED)
def test_every_turn_and_mirror(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix

    def set_matrix(stream: av.VideoStream) -> None:
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])

    frames = (rgb(corners()).reformat(format="yuv420p") for _ in range(5))
    path = write_frames(tmp_path / "turned.mp4", frames, options={"crf": "10"}, set_up=set_matrix)
    # Where the middle of each quarter goes, around the centre of the picture.
    right = np.zeros((2, 2), int)
    for row, column in itertools.product(range(2), repeat=2):
        x, y = 2 * column - 1, 2 * row - 1
        right[(b * x + d * y + 1) // 2, (a * x + c * y + 1) // 2] = corners()[32 * row + 16, 48 * column + 24, 0]
    for reader in READERS:
        shown = read(path, reader)[2, ..., 0]
        height, width = shown.shape
        assert (height, width) == ((96, 64) if matrix in CROSSED else (64, 96))
        middles = shown[height // 4 :: height // 2, width // 4 :: width // 2]
        assert np.max(np.abs(middles.astype(int) - right)) <= 3


def test_other_angles_are_refused(tmp_path: Path) -> None:
    frames = (rgb(corners()).reformat(format="yuv420p") for _ in range(3))
    path = write_frames(tmp_path / "slanted.mp4", frames, set_up=lambda stream: stream.set_display_rotation(30))
    for reader in READERS:
        with pytest.raises(DataError, match=r"slanted\.mp4: is to be turned by an angle that is no multiple of 90"):
            read(path, reader)
        with pytest.raises(DataError, match="no multiple of 90"):
            open_reader(reader).probe(Media(str(path)))


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [("2/1", (96, 192)), ("1/2", (192, 96)), ("8/9", (108, 96)), ("16/11", (96, 140)), ("1280/1281", (96, 96))],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_circles_are_circles(tmp_path: Path, aspect: str, shown: tuple[int, int], suffix: str) -> None:
    y, x = np.mgrid[:96, :96] - 47.5
    stretch = float(Fraction(aspect))
    inside = (x * stretch) ** 2 + y**2 < 40**2 if stretch > 1 else x**2 + (y / stretch) ** 2 < 40**2
    disc = np.repeat(np.where(inside, 220, 30).astype(np.uint8)[..., None], 3, axis=2)

    def set_aspect(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)

    frames = [rgb(disc).reformat(format="yuv420p") for _ in range(5)]
    path = write_frames(tmp_path / f"disc{suffix}", frames, options={"crf": "5"}, set_up=set_aspect)
    for reader in READERS:
        picture = read(path, reader)[2, ..., 0] > 125
        assert picture.shape == shown
        assert np.ptp(np.nonzero(picture.any(axis=1))[0]) + 1 == pytest.approx(80, abs=2)
        assert np.ptp(np.nonzero(picture.any(axis=0))[0]) + 1 == pytest.approx(80, abs=2)


def test_pixel_aspect_comes_before_turning(tmp_path: Path) -> None:
    def set_both(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)

    path = write_frames(tmp_path / "both.mp4", [rgb(corners()).reformat(format="yuv420p")] * 3, set_up=set_both)
    assert read(path).shape[1:3] == (192, 64)


def test_senseless_pixel_aspects_are_refused(tmp_path: Path) -> None:
    def set_aspect(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(20)

    path = write_frames(tmp_path / "mad.mp4", [rgb(corners()).reformat(format="yuv420p")] * 3, set_up=set_aspect)
    with pytest.raises(DataError, match=r"mad\.mp4: the file says that its pixels are 20:1 wide to high"):
        read(path)


# Constants of BT.2087 (primaries), BT.2100 (PQ, HLG), BT.601, BT.709 and BT.2020 (matrices).
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
LUMA = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}


def srgb_light(colour: tuple[int, ...]) -> NDArray[np.float64]:
    values = np.array(colour) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def pq(colour: tuple[int, ...]) -> NDArray[np.float64]:
    """Reference white of 203 cd/m2."""
    power = (TO_BT2020 @ srgb_light(colour) * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(colour: tuple[int, ...]) -> NDArray[np.float64]:
    display = TO_BT2020 @ srgb_light(colour) * 0.203
    scene = display * (np.array([0.2627, 0.6780, 0.0593]) @ display) ** (1 / 1.2 - 1)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def bt2020_of_standard_range(colour: tuple[int, ...]) -> NDArray[np.float64]:
    return (TO_BT2020 @ (np.array(colour) / 255) ** 2.4) ** (1 / 2.4)


def yuv(coded: NDArray[np.float64], matrix: str, bits: int = 8, *, full: bool = False) -> list[int]:
    red_share, blue_share = LUMA[matrix]
    luma = red_share * coded[0] + (1 - red_share - blue_share) * coded[1] + blue_share * coded[2]
    chroma = [(coded[2] - luma) / (2 - 2 * blue_share), (coded[0] - luma) / (2 - 2 * red_share)]
    step = 1 << (bits - 8)
    if full:
        return [round(255 * luma), *(round(128 + 255 * value) for value in chroma)]
    return [round(step * (16 + 219 * luma)), *(round(step * (128 + 224 * value)) for value in chroma)]


def coloured(path: Path, planes: list[int], size: tuple[int, int], **tags: int) -> Path:
    def set_tags(stream: av.VideoStream) -> None:
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)

    pixel_format = "yuv420p10le" if max(planes) > 255 else "yuv420p"
    frames = [flat_frame(planes, pixel_format, size) for _ in range(5)]
    return write_frames(path, frames, "ffv1", set_up=set_tags)


# Half a step of luma and of chroma, times the largest factor of the matrix, is 0.6 + 1.9 x 0.6 of 255; the scaler
# rounds down by up to 1. In 10 bits a step of PQ or HLG is up to 0.9 of 255 in sRGB, and the same factors apply.
TOLERANCE = 3
SMALL, HD = (48, 64), (64, 1280)
VALUES = np.array(COLOUR) / 255
COLOURS = {
    "BT.601": (yuv(VALUES, "601"), SMALL, {"colorspace": 6}),
    "BT.709": (yuv(VALUES, "709"), SMALL, {"colorspace": 1}),
    "BT.709, full range": (yuv(VALUES, "709", full=True), SMALL, {"colorspace": 1, "color_range": 2}),
    "BT.601, full range": (yuv(VALUES, "601", full=True), SMALL, {"colorspace": 5, "color_range": 2}),
    "small, doesn't say": (yuv(VALUES, "601"), SMALL, {}),
    "HD, doesn't say": (yuv(VALUES, "709"), HD, {}),
    "HD in BT.601": (yuv(VALUES, "601"), HD, {"colorspace": 6}),
    "PQ": (yuv(pq(COLOUR), "2020", 10), SMALL, {"colorspace": 9, "color_trc": 16, "color_primaries": 9}),
    "PQ, says only that": (yuv(pq(COLOUR), "2020", 10), SMALL, {"color_trc": 16}),
    "HLG": (yuv(hlg(COLOUR), "2020", 10), SMALL, {"colorspace": 9, "color_trc": 18, "color_primaries": 9}),
    "BT.2020 of standard range": (
        yuv(bt2020_of_standard_range(COLOUR), "2020", 10),
        SMALL,
        {"colorspace": 9, "color_trc": 14, "color_primaries": 9},
    ),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_one_colour_in_every_kind_of_video(tmp_path: Path, kind: str) -> None:
    planes, size, tags = COLOURS[kind]
    path = coloured(tmp_path / "red.mkv", planes, size, **tags)
    for reader in READERS:
        assert np.max(np.abs(read(path, reader).astype(int) - COLOUR)) <= TOLERANCE


def test_decord_leaves_colours_that_it_would_change_to_pyav(tmp_path: Path) -> None:
    frames = [flat_frame(yuv(VALUES, "709"), "yuv420p", HD) for _ in range(5)]
    path = write_frames(tmp_path / "hd.mp4", frames, options={"qp": "0", "preset": "ultrafast"})
    decoded = open_reader("decord").read(Media(str(path)), lambda times: frame_indices(times, ClipSpec((8, 8), 8, 5)))
    assert decoded.reader == "pyav"
    assert np.max(np.abs(decoded.frames.astype(int) - COLOUR)) <= TOLERANCE


def test_highlights_are_compressed_and_keep_their_order(tmp_path: Path) -> None:
    shown = []
    for light in (0.5, 1.0, 2.0, 4.0):  # of reference white
        power = (light * 203 / 10_000) ** 0.1593017578125
        grey = np.full(3, ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)
        path = coloured(tmp_path / f"{light}.mkv", yuv(grey, "2020", 10), SMALL, colorspace=9, color_trc=16)
        shown.append(int(read(path)[0, 0, 0, 0]))
    assert shown[0] == pytest.approx(188, abs=1)  # below the knee: sRGB of half the light
    assert shown == sorted(set(shown)) and shown[1] > 220 and shown[3] < 256


def test_matrices_that_libav_does_not_know_are_refused(tmp_path: Path) -> None:
    path = coloured(tmp_path / "ictcp.mkv", [400, 500, 500], SMALL, colorspace=14)
    with pytest.raises(DataError, match=r"ictcp\.mkv: its colours are coded by matrix 14 of H\.273"):
        read(path)


TRANSPARENT = {
    "vp9.webm": ("libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "0"}),
    "vp8.webm": ("libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "5M"}),
    "prores.mov": ("prores_ks", "yuva444p10le", {"profile": "4444"}),
    "qtrle.mov": ("qtrle", "argb", {}),
    "png.mov": ("png", "rgba", {}),
    "ffv1.mkv": ("ffv1", "bgra", {}),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_parts_are_white_as_in_images(tmp_path: Path, name: str) -> None:
    codec, pixel_format, options = TRANSPARENT[name]
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, np.repeat([0, 128, 255], 32)
    Image.fromarray(pixels).save(tmp_path / "image.png")

    def set_alpha(stream: av.VideoStream) -> None:
        if name.endswith(".webm"):
            stream.metadata["alpha_mode"] = "1"

    frames = [av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=pixel_format) for _ in range(3)]
    path = write_frames(tmp_path / name, frames, codec, options=options, set_up=set_alpha)
    for reader in READERS:
        middles = read(path, reader, 1)[0, 32, 16::32].astype(int)
        image = read_image(Media(str(tmp_path / "image.png")))
        assert np.max(np.abs(middles - image[32, 16::32])) <= 4  # lossy, and 4:2:0


def test_transparent_gif(tmp_path: Path) -> None:
    pictures = []
    for number in range(4):
        pixels = np.zeros((48, 64, 4), np.uint8)
        pixels[:, 16 * number : 16 * number + 16] = (*COLOUR, 255)
        pictures.append(Image.fromarray(pixels))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=120, disposal=2)
    frame = read(tmp_path / "a.gif", count=1)[0]
    assert np.all(frame[24, 8] == COLOUR) and np.all(frame[24, 40] == 255)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_interlaced_clips_have_no_combs(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("interlaced.mp4" if codec == "libx264" else "interlaced.mpg")
    bar = "color=gray:size=192x128:rate=50:duration=2[a];color=white:size=24x128:rate=50[b];[a][b]overlay=x=n*3:y=0"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i"]
    command += [f"{bar}:shortest=1,tinterlace=interleave_top,setfield=tff,format=yuv420p", "-c:v", codec]
    subprocess.run([*command, "-flags", "+ildct+ilme", "-q:v", "2", str(path)], check=True)

    def combs(frames: NDArray[np.uint8]) -> float:
        rows = frames[..., 0].astype(float)
        return float(np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]).mean())

    with av.open(str(path)) as container:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    for reader in READERS:
        assert combs(read(path, reader)) < 0.1 * combs(stored[:20:3])
    assert np.array_equal(read(path, "pyav"), read(path, "decord"))
