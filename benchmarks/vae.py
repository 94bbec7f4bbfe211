"""The VAE against diffusers' AutoencoderKLCogVideoX: the same weights, clip and dtype, taken in turns in one process.

    python benchmarks/vae.py                                   # half the released width, 17 x 48 x 64, fp32: 30 s
    python benchmarks/vae.py --ch 128 --height 96 --width 144 --rounds 3 --floor         # real width, several minutes
    python benchmarks/vae.py --ch 128 --frames 49 --height 480 --width 720 --dtype bf16  # on a GPU
    python benchmarks/vae.py --tile 32 48                      # with tiles as well (tile_size)

The first round warms up and measures memory: the peak above what was there before. Encoding is in one call by ours and
in chunks of 8 frames by diffusers (and by ours as `chunks of 8`). --floor adds the convolutions that diffusers' decoder
runs, alone, on tensors that are there already. CPU seconds are printed beside seconds, since they mean something on a
busy machine as well.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "sat"))

from cogvideox.vae.autoencoder import VideoAutoencoder  # noqa: E402 (needs the source root above)
from cogvideox.weights import vae_map  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHUNK_FRAMES = 8  # what diffusers encodes at a time
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}


@dataclass
class Measured:
    """What the rounds of one action gave: seconds, processor seconds, bytes at the peak."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ch", type=int, default=64, help="base width; 128 is the released VAE")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=1, help="after the one that warms up")
    parser.add_argument(
        "--tile", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="also in tiles of so many pixels"
    )
    parser.add_argument("--overlap", type=int, default=16, help="of tiles, in pixels")
    parser.add_argument("--floor", action="store_true", help="also the bare convolutions of decoding")
    options = parser.parse_args()
    with torch.no_grad():
        compare(build(options), options)


def build(options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """What is measured, by name; all models hold the same random weights."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    place = {"device": options.device, "dtype": DTYPES[options.dtype]}
    ours = VideoAutoencoder(ch=options.ch)
    state = ours.state_dict()
    theirs = AutoencoderKLCogVideoX(block_out_channels=tuple(options.ch * mult for mult in (1, 2, 2, 4)))
    theirs.load_state_dict({vae_map.sat_to_diffusers(name): value for name, value in state.items()})
    theirs = theirs.to(**place).eval().requires_grad_(False)

    def own(**settings: Any) -> VideoAutoencoder:
        """Another one with the same tensors."""
        with torch.device("meta"):
            vae = VideoAutoencoder(ch=options.ch, **settings)
        vae.load_state_dict(ours.state_dict(), assign=True)
        vae.freeze()
        return vae

    ours.to(**place).freeze()
    chunked = own(encode_chunk_frames=CHUNK_FRAMES)
    video = torch.rand(1, options.frames, 3, options.height, options.width).mul(2).sub(1).to(**place)
    latent = torch.randn(1, (options.frames + 3) // 4, 16, options.height // 8, options.width // 8).to(**place)
    their_video, their_latent = video.transpose(1, 2).contiguous(), latent.transpose(1, 2).contiguous()
    actions = {
        "encode, diffusers": lambda: theirs.encode(their_video).latent_dist.mean.transpose(1, 2),
        "encode, ours": lambda: ours.encode(video).mean,
        "encode, ours, chunks of 8": lambda: chunked.encode(video).mean,
        "decode, diffusers": lambda: theirs.decode(their_latent).sample.transpose(1, 2),
        "decode, ours": lambda: ours.decode(latent),
    }
    if options.tile:
        tiled = own(encode_chunk_frames=CHUNK_FRAMES, tile_size=options.tile, tile_overlap=options.overlap)
        actions["encode, ours, chunks of 8, tiles"] = lambda: tiled.encode(video).mean
        actions["decode, ours, tiles"] = lambda: tiled.decode(latent)
    if options.floor:
        for name, layout in LAYOUTS.items():
            floor = bare_convolutions(theirs, lambda: theirs.decode(their_latent), layout)
            actions[f"decode, bare convolutions, {name}"] = floor
    return actions


def bare_convolutions(model: nn.Module, run: Callable[[], object], layout: torch.memory_format) -> Callable[[], Tensor]:
    """The convolutions that `run` makes `model` do, each as often, on inputs of those shapes."""
    seen: Counter[tuple[nn.Conv2d | nn.Conv3d, torch.Size]] = Counter()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    hooks = [conv.register_forward_pre_hook(lambda conv, x: seen.update([(conv, x[0].shape)])) for conv in convolutions]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    weight = convolutions[0].weight
    largest = max(shape.numel() for _, shape in seen)
    memory = torch.randn(largest, device=weight.device, dtype=weight.dtype)

    def convolve_all() -> Tensor:
        for (conv, shape), times in seen.items():
            x = memory[: shape.numel()]
            if len(shape) == 5 and layout == torch.channels_last_3d:
                b, c, t, h, w = shape
                x = x.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)
            else:
                x = x.view(shape)
            for _ in range(times):
                conv(x)
        return memory

    return convolve_all


def compare(actions: dict[str, Callable[[], Tensor]], options: argparse.Namespace) -> None:
    """One round of warming up, in which memory is measured, then interleaved rounds; medians and ratios."""
    measured = {name: Measured() for name in actions}
    results = {}
    for name, action in actions.items():
        results[name], measured[name].peak = peak_bytes(action, options.device)
    for _ in range(options.rounds):
        for name, action in actions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            action()
            if options.device != "cpu":
                torch.cuda.synchronize()
            measured[name].seconds.append(time.perf_counter() - start)
            measured[name].cpu_seconds.append(time.process_time() - cpu_start)
    print_setting(options)
    print(f"{'':42s} {'s':>8s} {'CPU s':>8s} {'x diffusers':>12s} {'peak GiB':>9s}")
    for name, own in measured.items():
        reference = measured[name.split(",")[0] + ", diffusers"]
        ratio = statistics.median(mine / other for mine, other in zip(own.seconds, reference.seconds, strict=True))
        seconds, cpu_seconds = statistics.median(own.seconds), statistics.median(own.cpu_seconds)
        print(f"{name:42s} {seconds:8.2f} {cpu_seconds:8.2f} {ratio:12.2f} {own.peak / 2**30:9.2f}")
    for ours, theirs in (("encode, ours, chunks of 8", "encode, diffusers"), ("decode, ours", "decode, diffusers")):
        difference = (results[ours].float() - results[theirs].float()).abs().max().item()
        print(f"largest difference {ours}: {difference:.1e} (deviation {results[theirs].float().std().item():.2f})")


def peak_bytes(action: Callable[[], Tensor], device: str) -> tuple[Tensor, int]:
    """The result of an action, and the memory that it takes beyond what was there before it."""
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return action(), torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # or memory that earlier actions gave back would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    resident = _status_bytes("VmRSS")
    return action(), _status_bytes("VmHWM") - resident


def _status_bytes(field_name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field_name)).split()[1]) * 1024


def print_setting(options: argparse.Namespace) -> None:
    """What was measured, on what."""
    device = torch.cuda.get_device_name() if options.device != "cpu" else f"{torch.get_num_threads()} threads"
    print(
        f"{options.frames} x {options.height} x {options.width}, ch {options.ch}, {options.dtype}, {options.device} "
        f"({device}, load {os.getloadavg()[0]:.1f}), torch {torch.__version__}, rounds: {options.rounds}"
    )


if __name__ == "__main__":
    main()
