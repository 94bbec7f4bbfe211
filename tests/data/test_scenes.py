"""Cuts, fades and cross-fades are found; pans, zooms, shakes, flashes and changes of light are none."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from cogvideox.data.clips import RowRead
from cogvideox.data.dataset import build_dataset, split_held_out
from cogvideox.data.decode import open_reader, small_frames
from cogvideox.data.media import Media
from cogvideox.data.scenes import find_cuts
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from data.clip_files import numbered_frame, read_number, render, write_frames
from data.footage import Pictures, crossed, faded, scene

CALM, SLOW, FAST, STILL = (0.1, 0.03), (0.4, 0.1), (4.0, 1.0), (0.0, 0.0)


@pytest.mark.parametrize("speeds", [(SLOW, SLOW, SLOW), (FAST, SLOW, FAST), (STILL, FAST, STILL), (FAST, FAST, FAST)])
def test_hard_cuts_are_found_to_the_frame(speeds: tuple[tuple[float, float], ...]) -> None:
    for seed in range(3):
        parts = [scene(10 * seed + i, 12 + 5 * i, speed=speed) for i, speed in enumerate(speeds)]
        assert find_cuts(np.concatenate(parts)) == (12, 29)


def moving() -> dict[str, Pictures]:
    """One scene each."""
    lit = scene(3, 60).astype(np.float64) * np.linspace(1, 0.3, 60)[:, None, None, None]
    started = np.concatenate([scene(4, 20, speed=STILL), scene(4, 40, speed=(5, 0))])
    return {
        "still": scene(0, 40, speed=STILL),
        "slow": scene(1, 60),
        "pan": scene(2, 60, speed=(3.0, 0)),
        "fast pan": scene(2, 60, speed=(7.0, 2.0)),
        "a pan that starts": started,
        "zoom": scene(5, 60, zoom=1.03),
        "shake": scene(6, 60, shake=1.5),
        "getting dark": lit.astype(np.uint8),
        "black": np.zeros((40, 24, 24, 3), np.uint8),
        "fading in": (scene(7, 40) * (np.arange(40) / 39)[:, None, None, None]).astype(np.uint8),
    }


@pytest.mark.parametrize("kind", moving())
def test_what_moves_is_one_scene(kind: str) -> None:
    assert find_cuts(moving()[kind]) == ()


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("speed", [STILL, SLOW, (2.0, 0.5)])
def test_flashes_are_no_cuts(frames: int, speed: tuple[float, float]) -> None:
    for light in (255, 130, -255):  # white, brighter, black
        flashed = scene(8, 40, speed=speed).astype(int)
        flashed[20 : 20 + frames] += light
        assert find_cuts(np.clip(flashed, 0, 255).astype(np.uint8)) == ()


@pytest.mark.parametrize("length", [1, 2, 5, 12, 25])
@pytest.mark.parametrize("colour", [0, 255])
def test_fades_are_cuts(length: int, colour: int) -> None:
    for seed in range(3):
        frames, where = faded(scene(seed, 50), scene(seed + 50, 50), length, colour)
        cuts = find_cuts(frames)
        assert cuts and all(cut in where for cut in cuts), (seed, cuts, where)
        assert len(cuts) == 1 or length < 5  # a fast one is several hard cuts


@pytest.mark.parametrize("length", [8, 12, 20, 30])
def test_cross_fades_are_one_cut(length: int) -> None:
    for seed in range(3):
        frames, where = crossed(scene(seed, 70, speed=CALM), scene(seed + 60, 70, speed=CALM), length)
        cuts = find_cuts(frames)
        assert len(cuts) == 1 and cuts[0] in where, (seed, cuts, where)


def test_few_frames() -> None:
    for count in range(4):
        assert find_cuts(np.zeros((count, 24, 24, 3), np.uint8)) == ()
    assert find_cuts(np.concatenate([scene(0, 1), scene(1, 1)])) == (1,)


@pytest.mark.slow
def test_many_scenes() -> None:
    """Of cuts between scenes that move in every way, at most one in a hundred is missed or found beside its place."""
    rng = np.random.default_rng(0)
    missed = extra = total = 0
    for _ in range(100):
        parts = [
            scene(int(rng.integers(1000)) + 1000 * i, int(rng.integers(10, 60)), speed=tuple(rng.normal(0, 2, 2)),
                  zoom=float(rng.uniform(1, 1.02)), shake=float(rng.choice([0.0, 0.0, 0.7])))
            for i in range(5)
        ]  # fmt: skip
        right = set(np.cumsum([len(part) for part in parts])[:-1].tolist())
        found = set(find_cuts(np.concatenate(parts)))
        missed, extra, total = missed + len(right - found), extra + len(found - right), total + len(right)
    assert missed <= total / 100 and extra <= total / 100, (missed, extra, total)


def encoded(path: Path, frames: Pictures, codec: str = "libx264", fps: int = 16, **options: str) -> Path:
    coded = (av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p") for frame in frames)
    return write_frames(path, coded, codec, fps, options=options)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_cuts_of_files(tmp_path: Path, suffix: str) -> None:
    parts = [scene(i, 24 + i, speed=FAST, size=(64, 96)) for i in range(3)]
    codec = "libvpx" if suffix == ".webm" else "libx264"
    media = Media(str(encoded(tmp_path / f"cut{suffix}", np.concatenate(parts), codec, b="1M")))
    assert small_frames(media, 24).shape == (75, 24, 24, 3)
    for reader in ("pyav", "decord"):
        info = open_reader(reader, "avoid").probe(media)
        assert tuple(info.cuts) == (24, 49) and info.num_frames == 75
    assert tuple(open_reader("pyav").probe(media).cuts) == ()


def test_small_frames_are_those_that_are_read(tmp_path: Path) -> None:
    media = Media(str(render(tmp_path / "numbered.mp4", 40, 16, size=(48, 96))))
    assert [read_number(frame) for frame in small_frames(media, 24)] == list(range(40))


def test_a_file_that_ends_early_has_no_known_cuts(tmp_path: Path) -> None:
    path = encoded(tmp_path / "whole.mkv", scene(0, 40, size=(64, 96)))
    (tmp_path / "cut.mkv").write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    media = Media(str(tmp_path / "cut.mkv"))
    try:
        cuts = open_reader("pyav", "avoid").probe(media).cuts
    except DataError as error:
        assert str(error).startswith(f"{media.label}: ")
    else:
        assert tuple(cuts) == ()


def test_no_window_crosses_a_cut_and_none_of_a_held_out_file_is_trained_on(tmp_path: Path) -> None:
    numbers = (15, 51, 85)  # what the scenes show in their middle, which is read back
    for name in range(6):
        shown = [scene(name, 20 + k, speed=STILL, size=(48, 96)) // 6 for k in range(3)]
        for k, frames in enumerate(shown):
            frames[:, 12:36] = numbered_frame(numbers[k], 24, 96)
        encoded(tmp_path / f"{name}.mp4", np.concatenate(shown), crf="10")
        (tmp_path / f"{name}.txt").write_text("a scene")
    spec = ClipSpec((48, 96), 16, 9, windows="all", scene_cuts="avoid")
    dataset = build_dataset([tmp_path], spec, num_workers=0)
    assert len(dataset.samples) == len(set(dataset.sample_ids().tolist())) == 6 * 6  # 20, 21 and 22 frames hold two
    for sample in dataset.samples:
        read = dataset.reader.run(dataset.reader.job(sample, spec.bucket, 0, 0))
        assert isinstance(read, RowRead)
        frames = [frame.permute(1, 2, 0).numpy() for frame in read.values["video"]]
        assert {read_number(frame) for frame in frames} == {numbers[sample.window // 2]}
    train, held_out = split_held_out(dataset, 0.3)
    assert len(train) == 24 and len(held_out) == 12
    assert not {sample.media for sample in train.samples} & {sample.media for sample in held_out.samples}
    # The second time the cuts are remembered.
    again = build_dataset([tmp_path], spec, num_workers=0)
    assert again.samples == dataset.samples
