"""Reading a clip for training: the readers against the way of the original data set, side by side.

    python benchmarks/data.py                       # 30 fps H.264, 480p and 720p -> 49 frames at 8 fps, 480x720
    python benchmarks/data.py --rounds 20 --clip my.mp4
    python benchmarks/data.py --rows 1000000        # a list of so many clips: opening it, and the order of an epoch
    python benchmarks/data.py --files 2000          # looking at so many files: the first start and the second

`original` is a plain re-implementation of what the original does: decord, one integer stride, every frame of the range
decoded, bicubic antialiased resize and pixels to [-1, 1] in float32. Ours decode what is needed, resize in uint8 and
leave [-1, 1] to the device. All run in one thread, in turns, so that other load hits them alike. Clips per second of
CPU time are what each core of a machine that does nothing else gives; wall time suffers from other load.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import decord
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from av.video.reformatter import Colorspace
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.decode import READERS, open_reader
from cogvideox.data.listing import find_samples
from cogvideox.data.media import Media
from cogvideox.data.order import epoch_order
from cogvideox.data.sources.read import read_sources
from cogvideox.data.timing import ClipSpec, frame_indices
from cogvideox.data.transforms import covering_size, fit_to_bucket
from cogvideox.errors import DataError

SPEC = ClipSpec(video_size=(480, 720), fps=8.0, max_num_frames=49)
SOURCES = {"480p": (480, 854), "720p": (720, 1280)}
SOURCE_FPS, SOURCE_FRAMES = 30, 240
Read = Callable[[str], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="turns of every candidate")
    parser.add_argument("--clip", type=Path, default=None, help="a file of your own instead of the rendered ones")
    parser.add_argument("--rows", type=int, default=0, help="open a CSV of so many rows instead")
    parser.add_argument("--files", type=int, default=0, help="look at so many copies of a small clip instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread"
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.rows or options.files:
            if options.rows:
                open_list(Path(folder) / "list.csv", options.rows)
            if options.files:
                look_twice(Path(folder), options.files)
            return
        for name, size in SOURCES.items():
            path = options.clip or render(Path(folder) / f"{name}.mp4", size)
            compare(options.clip.name if options.clip else name, str(path), options.rounds)
            if options.clip:
                break


def render(path: Path, size: tuple[int, int]) -> Path:
    """Smooth textures that move over each other, with a little grain: about as hard to decode as ordinary footage."""
    height, width = size
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (2, 3, height // 16, width // 16))).float()
    textures = F.interpolate(coarse, size=(height, 2 * width), mode="bicubic").clamp(0, 255).numpy()
    grain = rng.normal(0, 3, (4, 3, height, width))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=SOURCE_FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "fast", "crf": "23"}
        stream.codec_context.colorspace = Colorspace.ITU709  # without it, decord's colours aren't those of players
        for number in range(SOURCE_FRAMES):
            front, back = textures[0][..., 2 * number :][..., :width], textures[1][..., width - number :][..., :width]
            pixels = np.clip(0.6 * front + 0.4 * back + grain[number % 4], 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), format="rgb24")
            coded = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(coded))
        container.mux(stream.encode(None))
    return path


def compare(name: str, path: str, rounds: int) -> None:
    """Print a table for one file."""
    candidates: dict[str, Read] = {"original": read_like_the_original}
    for reader in READERS:
        try:
            decoder = ClipDecoder(SPEC, open_reader(reader))
        except DataError as error:
            print(f"{reader}: left out: {error}")
            continue
        candidates[reader] = lambda path, decoder=decoder: decoder.read(
            ReadJob(Media(path), 0, SPEC.bucket, 0, 0)
        ).values["video"]
    check(candidates, path)
    cpu: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    wall: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate, read in candidates.items():
            started, used = time.perf_counter(), time.process_time()
            read(path)
            cpu[candidate].append(time.process_time() - used)
            wall[candidate].append(time.perf_counter() - started)
    print(f"\n{name}: {os.path.getsize(path) / 1e6:.1f} MB, median of {rounds} turns")
    print(
        f"{'':10}{'s of CPU':>10}{'s of wall':>11}{'clips/s of CPU':>16}{'of wall':>9}{'x original':>12}{'by wall':>9}"
    )
    for candidate in candidates:
        seconds, elapsed = statistics.median(cpu[candidate]), statistics.median(wall[candidate])
        ratio = statistics.median(np.divide(cpu["original"], cpu[candidate]))
        by_wall = statistics.median(np.divide(wall["original"], wall[candidate]))
        print(
            f"{candidate:10}{seconds:10.3f}{elapsed:11.3f}{1 / seconds:16.2f}{1 / elapsed:9.2f}"
            f"{ratio:11.2f}x{by_wall:8.2f}x"
        )
    print_resize(path, rounds)


def open_list(file: Path, num_rows: int) -> None:
    """A CSV becomes a manifest; no video is opened, none is there."""
    with file.open("w") as text:
        text.write("video,caption\n")
        for row in range(num_rows):
            text.write(
                f'clips/{row // 1000:04d}/{row:07d}.mp4,"Clip {row}: a cat on a mat, while the light changes."\n'
            )
    before = psutil.Process().memory_info().rss
    started, used = time.perf_counter(), time.process_time()
    samples = read_sources([file]).samples
    wall, cpu, grown = time.perf_counter() - started, time.process_time() - used, psutil.Process().memory_info().rss
    assert len(samples) == num_rows
    print(f"{num_rows:,} rows: opened in {wall:.1f} s ({cpu:.1f} of CPU), {(grown - before) / 1e6:.0f} MB resident")
    used = time.process_time()
    epoch_order(samples.sample_ids(), 0, 0)
    print(f"order of an epoch: {time.process_time() - used:.2f} s of CPU")


def look_twice(folder: Path, num_files: int) -> None:
    """What the first start of a run has looked at, the second one remembers."""
    content = render(folder / "clip.mp4", (240, 480)).read_bytes()
    (folder / "clips").mkdir()
    for number in range(num_files):
        (folder / "clips" / f"{number}.mp4").write_bytes(content)
    walls = []
    for start in ("first", "second"):
        started = time.perf_counter()
        samples, *_ = find_samples(
            [folder / "clips"], SPEC, open_reader("pyav"), missing_captions="empty", cache=str(folder / "cache")
        ).listed
        walls.append(time.perf_counter() - started)
        assert len(samples) == num_files
        print(f"{start} start: {walls[-1]:.2f} s, {num_files / walls[-1]:,.0f} files/s")
    print(f"the second is {walls[0] / walls[1]:.0f} times as fast")


def check(candidates: dict[str, Read], path: str) -> None:
    """All readers give the same clip, and it starts as the original's does. Prints how far they are from PyAV."""
    clips = {name: read(path) for name, read in candidates.items()}
    for name in clips.keys() - {"pyav"}:
        assert clips[name].shape == clips["pyav"].shape
    for name in clips.keys() - {"pyav", "original"}:
        apart = (clips[name].int() - clips["pyav"].int()).abs()
        assert apart.float().mean() < 1
        print(f"{name}: pixels differ from PyAV's by at most {apart.max()}, {apart.float().mean():.3f} on average")
    original = clips["original"][0] * 127.5 + 127.5
    assert (original - clips["pyav"][0].float()).abs().mean() < 2


def read_like_the_original(path: str) -> Tensor:
    """Float32 [t, c, h, w] in [-1, 1]."""
    video = decord.VideoReader(path, num_threads=1)
    end = min(round(SPEC.max_num_frames / SPEC.fps * video.get_avg_fps()), len(video))
    indices = np.arange(0, end, end // SPEC.max_num_frames)[: SPEC.max_num_frames]
    frames = torch.from_numpy(video.get_batch(np.arange(end)).asnumpy())[torch.from_numpy(indices)]
    return resize_in_float(frames) / 127.5 - 1


def resize_in_float(frames: Tensor) -> Tensor:
    height, width = SPEC.video_size
    covering = covering_size((frames.shape[1], frames.shape[2]), SPEC.video_size)
    pixels = frames.permute(0, 3, 1, 2).float()
    if covering != tuple(pixels.shape[2:]):  # torchvision's resize does nothing either where nothing is to be done
        pixels = F.interpolate(pixels, size=covering, mode="bicubic", antialias=True)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return pixels.clamp(0, 255)[:, :, top : top + height, left : left + width].contiguous()


def print_resize(path: str, rounds: int) -> None:
    """Resize alone, of the frames that are read."""
    frames = open_reader("pyav").read(Media(path), lambda times: frame_indices(times, SPEC)).frames
    times: dict[str, list[float]] = {"float32": [], "uint8": []}
    for _ in range(rounds):
        for kind, resize in (
            ("float32", resize_in_float),
            ("uint8", lambda x: fit_to_bucket(x.numpy(), SPEC.video_size)),
        ):
            used = time.process_time()
            resize(torch.from_numpy(frames))
            times[kind].append(time.process_time() - used)
    print(
        "resize and crop alone: "
        + ", ".join(f"{kind} {statistics.median(each) * 1e3:.0f} ms" for kind, each in times.items())
    )


if __name__ == "__main__":
    main()
