"""The VAE against diffusers' AutoencoderKLCogVideoX: the same weights, clip and dtype, taken in turns in one process.

    python benchmarks/vae.py                                   # 17 x 96 x 144, real width, fp32
    python benchmarks/vae.py --frames 49 --height 480 --width 720 --dtype bf16      # on a GPU
    python benchmarks/vae.py --memory                          # peak memory of each, in processes of their own

"bare convolutions" are the convolutions that diffusers runs, on tensors that are there already: nothing between them.
Encoding is in one call by ours and in chunks of 8 frames by diffusers (and by ours as `encode, chunks of 8`).
CPU seconds are printed beside seconds, since they mean something on a busy machine as well.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "sat"))

from cogvideox.vae.autoencoder import VideoAutoencoder  # noqa: E402 (needs the source root above)
from cogvideox.weights import vae_map  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHUNK_FRAMES = 8  # what diffusers encodes at a time
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--ch", type=int, default=128, help="base width; 128 is the released VAE")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one action, in the process that --memory starts
    options = parser.parse_args()
    if options.only:
        print(peak_bytes(options))
    elif options.memory:
        compare_memory(options)
    else:
        compare_time(options)


def build(options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """What is measured, by name; both models hold the same random weights."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    place = {"device": options.device, "dtype": DTYPES[options.dtype]}
    ours = VideoAutoencoder(ch=options.ch)
    theirs = AutoencoderKLCogVideoX(block_out_channels=tuple(options.ch * mult for mult in (1, 2, 2, 4)))
    theirs.load_state_dict({vae_map.sat_to_diffusers(name): value for name, value in ours.state_dict().items()})
    ours, theirs = ours.to(**place), theirs.to(**place).eval().requires_grad_(False)
    ours.freeze()
    video = torch.rand(1, options.frames, 3, options.height, options.width).mul(2).sub(1).to(**place)
    latent = torch.randn(1, (options.frames + 3) // 4, 16, options.height // 8, options.width // 8).to(**place)

    def encode_in_chunks() -> Tensor:
        ours.encode_chunk_frames = CHUNK_FRAMES
        mean = ours.encode(video).mean
        ours.encode_chunk_frames = None
        return mean

    their_video, their_latent = video.transpose(1, 2).contiguous(), latent.transpose(1, 2).contiguous()
    actions = {
        "encode, diffusers": lambda: theirs.encode(their_video).latent_dist.mean.transpose(1, 2),
        "encode, ours": lambda: ours.encode(video).mean,
        "encode, ours, chunks of 8": encode_in_chunks,
        "decode, diffusers": lambda: theirs.decode(their_latent).sample.transpose(1, 2),
        "decode, ours": lambda: ours.decode(latent),
    }
    if options.only is None:
        for name, layout in LAYOUTS.items():
            floor = bare_convolutions(theirs, lambda: theirs.decode(their_latent), layout)
            actions[f"decode, bare convolutions, {name}"] = floor
    return actions


def bare_convolutions(model: nn.Module, run: Callable[[], object], layout: torch.memory_format) -> Callable[[], Tensor]:
    """The convolutions that `run` makes `model` do, each as often, on inputs of those shapes."""
    seen: Counter[tuple[nn.Module, torch.Size]] = Counter()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    hooks = [conv.register_forward_pre_hook(lambda conv, x: seen.update([(conv, x[0].shape)])) for conv in convolutions]
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


@torch.no_grad()
def compare_time(options: argparse.Namespace) -> None:
    """Interleaved rounds after one round of warming up; medians and ratios."""
    actions = build(options)
    results = {name: action() for name, action in actions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(options.rounds):
        for name, action in actions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            action()
            if options.device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    print_setting(options)
    for name in actions:
        reference = name.split(",")[0] + ", diffusers"
        ratios = [own / other for own, other in zip(seconds[name], seconds[reference], strict=True)]
        print(
            f"{name:42s} {statistics.median(seconds[name]):8.2f} s  {statistics.median(cpu_seconds[name]):8.2f} CPU s"
            f"  {statistics.median(ratios):5.2f} x diffusers"
        )
    for ours, theirs in (("encode, ours, chunks of 8", "encode, diffusers"), ("decode, ours", "decode, diffusers")):
        difference = (results[ours].float() - results[theirs].float()).abs().max().item()
        print(f"largest difference {ours}: {difference:.1e} (deviation {results[theirs].float().std().item():.2f})")


def compare_memory(options: argparse.Namespace) -> None:
    """Peak memory above the built models, each action in a process of its own."""
    print_setting(options)
    for name in ("encode, diffusers", "encode, ours", "encode, ours, chunks of 8", "decode, diffusers", "decode, ours"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{name:42s} {int(output.split()[-1]) / 2**30:6.2f} GiB above the weights")


@torch.no_grad()
def peak_bytes(options: argparse.Namespace) -> int:
    """Memory that one action takes beyond what was there before it."""
    action = build(options)[options.only]
    if options.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated() - before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def print_setting(options: argparse.Namespace) -> None:
    """What was measured, on what."""
    device = torch.cuda.get_device_name() if options.device != "cpu" else f"{torch.get_num_threads()} threads"
    print(
        f"{options.frames} x {options.height} x {options.width}, ch {options.ch}, {options.dtype}, {options.device} "
        f"({device}, load {os.getloadavg()[0]:.1f}), torch {torch.__version__}, {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
