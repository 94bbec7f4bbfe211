"""Image files as clips of one frame: what is read, and folders of images with captions."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cogvideox.data.clips import ClipDecoder, ProbeJob, ReadJob
from cogvideox.data.dataset import build_dataset
from cogvideox.data.decode import ClipInfo, PyAVReader
from cogvideox.data.images import ImageReader, read_image
from cogvideox.data.listing import find_samples
from cogvideox.data.loader import build_loader
from cogvideox.data.media import IMAGE_SUFFIXES, Media
from cogvideox.data.rows import ClipBatch
from cogvideox.data.sources.read import read_sources
from cogvideox.data.survey import Survey
from cogvideox.data.timing import ClipSpec
from cogvideox.data.transforms import fit_to_bucket
from cogvideox.errors import DataError
from data.clip_files import read_number, render, render_pair
from PIL import ExifTags, Image
from torch import Tensor

ONE_FRAME = ClipSpec((16, 24), 8, 1, skip_frms_num=3.0)
# Height 20, width 30; the left half is red, the right half blue.
HALVES = np.zeros((20, 30, 3), dtype=np.uint8)
HALVES[:, :15], HALVES[:, 15:] = (250, 10, 10), (10, 10, 250)


def put_image(path: Path, caption: str | None = "an image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(HALVES).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".PNG"])
def test_every_format_gives_its_pixels(tmp_path: Path, suffix: str) -> None:
    path = put_image(tmp_path / f"x{suffix}")
    pixels = read_image(Media(str(path)))
    assert Media(str(path)).is_image and pixels.shape == (20, 30, 3) and pixels.dtype == np.uint8
    error = np.abs(pixels.astype(int) - HALVES)[:, [0, -1]].max()
    assert error <= (0 if suffix.lower() in (".png", ".bmp") else 12)  # the others lose a little
    info = ImageReader().probe(Media(str(path)))
    assert (info.width, info.height, info.num_frames) == (30, 20, 1)


@pytest.mark.parametrize(("orientation", "size"), [(1, (20, 30)), (3, (20, 30)), (6, (30, 20)), (8, (30, 20))])
def test_orientation_is_applied(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(HALVES).save(tmp_path / "x.png", exif=exif)
    turned = {1: HALVES, 3: np.rot90(HALVES, 2), 6: np.rot90(HALVES, -1), 8: np.rot90(HALVES)}[orientation]
    assert np.array_equal(read_image(Media(str(tmp_path / "x.png"))), turned)
    info = ImageReader().probe(Media(str(tmp_path / "x.png")))
    assert (info.height, info.width) == size


def test_transparency_becomes_white(tmp_path: Path) -> None:
    alpha = np.full((20, 30, 1), 255, dtype=np.uint8)
    alpha[:, 15:] = 0
    Image.fromarray(np.concatenate([HALVES, alpha], axis=2)).save(tmp_path / "x.png")
    pixels = read_image(Media(str(tmp_path / "x.png")))
    assert pixels[0, 0].tolist() == [250, 10, 10] and pixels[0, -1].tolist() == [255, 255, 255]
    palette = Image.fromarray(HALVES).quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((29, 0)))
    assert read_image(Media(str(tmp_path / "p.png")))[0, -1].tolist() == [255, 255, 255]


def test_grey_and_16_bits(tmp_path: Path) -> None:
    Image.fromarray(HALVES).convert("L").save(tmp_path / "grey.png")
    assert read_image(Media(str(tmp_path / "grey.png"))).shape == (20, 30, 3)
    ramp = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(Media(str(tmp_path / "deep.png")))[..., 0], (ramp // 257).astype(np.uint8))


def test_unreadable_images_are_named_with_a_reason(tmp_path: Path) -> None:
    whole = put_image(tmp_path / "whole.png").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "float.tiff").rename(tmp_path / "float.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:9000])
    expected = {
        "absent.png": r"absent\.png: is not a file",
        "empty.png": r"empty\.png: is empty \(0 bytes\)",
        "text.png": r"text\.png: can't be read as an image: not of a known format",
        "cut.png": r"cut\.png: can't be read as an image: ",
        "cut.jpg": r"cut\.jpg: can't be read as an image: .*truncated",
        "float.png": r"float\.png: can't be read as an image: its samples are floats; save it with 8 bits",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_image(Media(str(tmp_path / name)))
        if name != "float.png":  # which is found when it is read
            with pytest.raises(DataError, match=message):
                ImageReader().probe(Media(str(tmp_path / name)))


def test_an_image_is_a_clip_of_one_frame_from_which_nothing_is_dropped(tmp_path: Path) -> None:
    decoder = pickle.loads(pickle.dumps(ClipDecoder(ONE_FRAME, PyAVReader())))
    clip = decoder.read(ReadJob(Media(str(put_image(tmp_path / "x.png"))), 1, ONE_FRAME.bucket, 0, 0))
    video = clip.values["video"]
    assert video.shape == (1, 3, 16, 24) and clip.reader == "pillow"
    assert video[0, :, 8, 0].tolist() == [250, 10, 10] and video[0, :, 8, -1].tolist() == [10, 10, 250]
    info = decoder.run(ProbeJob(Media(str(tmp_path / "x.png"))))
    assert isinstance(info, ClipInfo) and Survey.of(info, ONE_FRAME).too_short is None


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images and clips with captions, a poster of a clip, an image without caption, and one that is broken."""
    root = tmp_path / "mixed"
    put_image(root / "a.png", "a picture")
    put_image(root / "b.jpg", "another picture")
    render_pair(root / "c.mp4", "a clip")
    put_image(root / "poster/c.png", None)
    (root / "broken.png").write_bytes(b"not an image")
    (root / "broken.txt").write_text("a caption")
    return root


def test_folders_of_images_and_clips_train_on_single_frames(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="cogvideox"):
        spec = replace(ONE_FRAME, video_size=(16, 32))  # as wide as the clip, so that its number is not cut off
        dataset = build_dataset(
            [mixed], spec, reader="pyav", missing_captions="empty", max_failed_share=0.3, num_workers=0
        )
        with build_loader(dataset, 4, num_workers=0) as loader:
            batch = next(loader)
    assert batch.video.shape == (4, 1, 3, 16, 32)
    assert sorted(batch.rows.captions) == ["", "a clip", "a picture", "another picture"]
    clip = batch.video[batch.rows.captions.index("a clip"), 0]
    assert read_number(clip.permute(1, 2, 0).numpy()) == 3  # the first after those dropped
    assert "data: 4 of 5 videos and images usable" in caplog.text
    assert "unreadable image: 1 (left out)" in caplog.text and "broken.png" in caplog.text
    assert "instead of" not in caplog.text  # Pillow steps in for nobody


def test_images_among_clips_are_reported_when_clips_have_more_frames(mixed: Path) -> None:
    samples, report, _ = find_samples([mixed], ClipSpec((16, 24), 8, 9), PyAVReader()).listed
    assert [Path(sample.media.path).name for sample in samples] == ["c.mp4"]
    left = report.of_kind("image among clips")
    assert [Path(problem.path).name for problem in left] == ["a.png", "b.jpg", "broken.png"]
    assert {problem.reason for problem in left} == {"images are samples only with data.max_num_frames=1"}
    assert not report.of_kind("caption without video")
    report.check()


def test_a_folder_of_images_needs_clips_of_one_frame(tmp_path: Path) -> None:
    put_image(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"holds 1 images and no video; images .* with data.max_num_frames=1"):
        read_sources([tmp_path])
    assert len(read_sources([tmp_path], with_images=True).samples) == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no video and no image; looked for .mp4, .*, .png, .jpg"):
        read_sources([tmp_path / "none"], with_images=True)


def test_the_first_image_of_image_to_video_is_the_samples_own_where_it_has_one(tmp_path: Path) -> None:
    """Of a list with an image column; other rows take the video's first frame, and so do text-to-video models all."""
    for name in "ab":
        render(tmp_path / f"{name}.mp4", num_frames=12, fps=8)
    put_image(tmp_path / "first.png")
    (tmp_path / "list.csv").write_text("video,text,image\na.mp4,with,first.png\nb.mp4,without,\n")
    spec = ClipSpec((16, 32), 8, 9)

    def rows(for_image_to_video: bool) -> dict[str, tuple[Tensor, Tensor]]:
        dataset = build_dataset([tmp_path / "list.csv"], spec, num_workers=0, for_image_to_video=for_image_to_video)
        with build_loader(dataset, 2, num_workers=0) as loader:
            batch = next(loader)
        assert isinstance(batch, ClipBatch)
        return dict(zip(batch.rows.captions, zip(batch.first_frame, batch.video, strict=True), strict=True))

    own, plain = rows(True), rows(False)
    image = fit_to_bucket(read_image(Media(str(tmp_path / "first.png")))[None], (16, 32))[0]
    assert torch.equal(own["with"][0], image)
    assert torch.equal(own["without"][0], own["without"][1][0])
    for caption in ("with", "without"):
        assert torch.equal(plain[caption][0], plain[caption][1][0]) and torch.equal(plain[caption][1], own[caption][1])
