"""What a cache costs while it is filled, and what training waits for when it reads from it.

    python benchmarks/cache.py                      # demo VAE, 24 clips; then 49x480x720 latents, 2 workers
    python benchmarks/cache.py --clips 100 --steps 100 --step-s 1.0

First the demo's clips are cached: how much of the time the device did not encode. Then entries of the size of a clip of
49x480x720 (bf16, as the released models train) are read by the training loader, one clip a step, while the main thread
sleeps as a step would take: how long each step waits for its batch, and how many bytes a second that needs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.caching.build import fill_latents, prepare_folders
from cogvideox.caching.contexts import ContextStore
from cogvideox.caching.entries import write_entry
from cogvideox.caching.keys import Recipe
from cogvideox.caching.latent_reader import LatentReader
from cogvideox.caching.opening import Cache
from cogvideox.config.load import load_config
from cogvideox.config.targets import instantiate
from cogvideox.data.clips import ClipDecoder
from cogvideox.data.dataset import VideoDataset, build_dataset
from cogvideox.data.loader import build_loader
from cogvideox.data.timing import ClipSpec
from cogvideox.geometry import Geometry
from cogvideox.training.preflight import clip_spec, data_section

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [str(ROOT / "configs" / name) for name in ("demo_lora.yaml", "demo_sft.yaml")]
PUBLISHED = ClipSpec(video_size=(480, 720), max_num_frames=49)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24, help="of the demo's clips that are cached")
    parser.add_argument("--steps", type=int, default=30, help="steps that read from the cache")
    parser.add_argument("--step-s", type=float, default=1.0, help="seconds of a step")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        filling(Path(folder) / "filled", options.clips, options.workers)
        reading(Path(folder) / "read", options.steps, options.step_s, options.workers)


def cache_of(root: Path, dataset: VideoDataset, geometry: Geometry) -> Cache:
    assert isinstance(dataset.reader, ClipDecoder)
    latents = LatentReader(str(root), Recipe.of("latents", "", stored="computed"), dataset.reader, geometry, 16, False)
    return Cache(latents, ContextStore(str(root), Recipe.of("contexts", ""), (226, 4096)))


def filling(root: Path, count: int, workers: int) -> None:
    """The share of the time that is not encoding."""
    config = load_config(CONFIGS, [], "train")
    dataset = build_dataset(config.train_args.train_data, clip_spec(data_section(config))).first(count)
    cache = cache_of(root, dataset, Geometry())
    prepare_folders(cache)
    vae = instantiate(config.model.first_stage_config)
    done = fill_latents(
        cache, cache.jobs(dataset, 0, 1), vae,
        num_workers=workers, clip_timeout_s=60, max_failed_share=0, show_progress=False,
    )  # fmt: skip
    idle = 1 - done.encoding_s / done.seconds
    print(f"filled: {done.made} clips of {dataset.bucket} in {done.seconds:.1f} s, {idle:.1%} of it not encoding")


def reading(root: Path, steps: int, step_s: float, workers: int) -> None:
    """How long a step waits for its latents."""
    config = load_config(CONFIGS, [], "train")
    dataset = build_dataset(config.train_args.train_data, clip_spec(data_section(config)))
    assert isinstance(dataset.reader, ClipDecoder)
    dataset = replace(dataset, reader=replace(dataset.reader, spec=PUBLISHED), bucket=PUBLISHED.bucket)
    cache = cache_of(root, dataset, Geometry())
    shape = cache.latents.fields(dataset.bucket)["mean"].shape
    moments = {name: torch.randn(shape).bfloat16() for name in ("mean", "log_variance")}
    size = 0
    for _, job in cache.jobs(dataset, 0, 1):
        place = cache.latents.place(job)
        size = write_entry(place.file, moments, {"key": place.key, "bucket": str(job.bucket)})
    with build_loader(cache.on(dataset, 1), 1, num_workers=workers) as loader:
        next(loader)  # workers start
        waits = []
        for _ in range(steps):
            time.sleep(step_s)
            begun = time.perf_counter()
            next(loader)
            waits.append(time.perf_counter() - begun)
    mean = sum(waits) / len(waits)
    print(
        f"read: {size / 1e6:.1f} MB a clip, {workers} workers, steps of {step_s:g} s: waits {mean * 1e3:.2f} ms a step "
        f"({mean / step_s:.2%}), longest {max(waits) * 1e3:.2f} ms; {size / step_s / 1e6:.1f} MB/s needed"
    )


if __name__ == "__main__":
    main()
