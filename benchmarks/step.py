"""Time of one training step of the transformer: ours, diffusers' (with peft for LoRA), and the bare operations.

All candidates have the same shapes, dtype and weights' sizes and take turns, so that other load hits them alike:

    python benchmarks/step.py                                # LoRA r 64, hidden 512, 8 layers, 2,026 tokens, fp32
    python benchmarks/step.py --method full --checkpointing --dtype bf16
    python benchmarks/step.py --device cuda --hidden 1920 --layers 30 --grid 13 60 90 --dtype bf16 --compile

A step is forward, loss, backward and AdamW. `floor` is the matrix products and attentions of those shapes with their
gradients and nothing else, by torch's own operators (MKL on CPU); `floor (oneDNN)` by ours where they differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEXT_LENGTH, TEXT_WIDTH, CHANNELS, TIME_WIDTH, LORA_ALPHA = 226, 4096, 16, 512, 64.0
# Dense bf16/fp16 peaks in TFLOP/s without sparsity, from the makers' data sheets.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
Step = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """What every candidate computes. grid: latent frames, height, width."""

    hidden: int
    layers: int
    grid: tuple[int, int, int]
    rank: int
    method: str
    checkpointing: bool
    dtype: torch.dtype
    device: torch.device
    compile: bool

    @property
    def heads(self) -> int:
        return self.hidden // 64

    @property
    def tokens(self) -> int:
        frames, height, width = self.grid
        return TEXT_LENGTH + frames * height * width // 4

    @property
    def flops(self) -> float:
        """Multiplications and additions of the blocks in one step, without recomputation (as MFU counts them)."""
        linear = 24 * self.tokens * self.hidden**2
        attention = 4 * self.tokens**2 * self.hidden
        if self.method == "full":
            return 3.0 * self.layers * (linear + attention)
        adapters = 16 * self.tokens * self.hidden * self.rank
        return float(self.layers * (2 * linear + 3 * attention + 3 * adapters))


def main() -> None:
    options = parse_arguments()
    os.environ.setdefault("SAT_LOGLEVEL", "ERROR")
    os.environ.setdefault("DS_ACCELERATOR", options.device)  # SAT imports DeepSpeed, which announces its guess
    work = Work(
        options.hidden,
        options.layers,
        tuple(options.grid),
        options.rank,
        options.method,
        options.checkpointing,
        DTYPES[options.dtype],
        torch.device(options.device),
        options.compile,
    )
    candidates = {"ours": build_ours, "diffusers": build_diffusers, "floor": build_floor}
    if work.device.type == "cpu" and work.dtype == torch.float32:
        candidates["floor (oneDNN)"] = build_onednn_floor
    if options.memory_of:
        report_own_memory(candidates[options.memory_of], work)
        return
    print(
        f"# {options.method}, hidden {work.hidden}, {work.layers} layers, {work.tokens} tokens, {options.dtype}, "
        f"checkpointing {work.checkpointing}, compile {work.compile}, {device_name(work)}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {work.flops / 1e12:.3f} TFLOP a step, {options.rounds} rounds"
    )
    walls, cpus = measure({name: build(work) for name, build in candidates.items()}, work, options.rounds)
    report(walls, cpus, {name: peak_memory(name, work) for name in candidates}, work)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--grid", type=int, nargs=3, default=(5, 36, 40), help="latent frames, height, width")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks, ours and theirs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def build_ours(work: Work) -> Step:
    from cogvideox.transformer.model import DiffusionTransformer

    room = "cogvideox.transformer."
    modules: dict[str, Any] = {
        "pos_embed_config": {"target": room + "positions.SinCosPositionMixin"},
        "patch_embed_config": {"target": room + "patch_embed.PatchEmbedMixin"},
        "adaln_layer_config": {"target": room + "adaln.AdaLNMixin"},
        "final_layer_config": {"target": room + "final_layer.FinalLayerMixin"},
    }
    if work.method == "lora":
        params = {"r": work.rank, "lora_alpha": LORA_ALPHA}
        modules["lora_config"] = {"target": room + "lora.LoraMixin", "params": params}
    frames, height, width = work.grid
    with torch.device(work.device):
        model = DiffusionTransformer(
            work.hidden,
            work.layers,
            work.heads,
            num_frames=4 * (frames - 1) + 1,
            latent_height=height,
            latent_width=width,
            checkpoint_activations=work.checkpointing,
            compile_blocks=work.compile,
            modules=modules,
            dtype=work.dtype,
        )
    if work.method == "lora":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("matrix_" in name)
    return training_step(model, lambda latent, timestep, context: model(latent, timestep, context), work)


def build_diffusers(work: Work) -> Step:
    from diffusers import CogVideoXTransformer3DModel

    frames, height, width = work.grid
    with torch.device(work.device):
        model = CogVideoXTransformer3DModel(
            num_attention_heads=work.heads,
            num_layers=work.layers,
            sample_frames=4 * (frames - 1) + 1,
            sample_height=height,
            sample_width=width,
        ).to(work.dtype)
    model.train()
    if work.method == "lora":
        from peft import LoraConfig

        model.requires_grad_(False)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        # The adapters' dtype follows the model's, as ours do.
        model.add_adapter(LoraConfig(r=work.rank, lora_alpha=LORA_ALPHA, target_modules=targets))
        model.to(work.dtype)
    if work.checkpointing:
        model.enable_gradient_checkpointing()
    if work.compile:
        for block in model.transformer_blocks:
            block.compile()
    return training_step(model, lambda latent, timestep, context: model(latent, context, timestep).sample, work)


def training_step(model: nn.Module, predict: Callable[[Tensor, Tensor, Tensor], Tensor], work: Work) -> Step:
    """Forward, mean squared error, backward, fused AdamW."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
    frames, height, width = work.grid
    like = {"device": work.device, "dtype": work.dtype}
    latent, target = torch.randn(2, 1, frames, CHANNELS, height, width, **like).unbind(0)
    context = torch.randn(1, TEXT_LENGTH, TEXT_WIDTH, **like)
    timestep = torch.tensor([500], device=work.device)

    def step() -> None:
        F.mse_loss(predict(latent, timestep, context).float(), target.float()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_floor(work: Work) -> Step:
    return bare_operations(work, F.linear)


def build_onednn_floor(work: Work) -> Step:
    from cogvideox.transformer.cpu_linear import linear

    return bare_operations(work, linear)


def bare_operations(work: Work, linear: Callable[..., Tensor]) -> Step:
    """The blocks' matrix products and attentions, chained, with the gradients that the method needs."""
    like = {"device": work.device, "dtype": work.dtype}
    full = work.method == "full"

    def weight(rows: int, columns: int, trained: bool) -> Tensor:
        return (torch.randn(rows, columns, **like) * columns**-0.5).requires_grad_(trained)

    d, r = work.hidden, work.rank
    shapes = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]
    layers = [[weight(rows, columns, full) for rows, columns in shapes] for _ in range(work.layers)]
    adapters = [
        [] if full else [weight(*shape, True) for shape in [(3 * r, d), (d, r), (d, r), (d, r), (r, d), (d, r)]]
        for _ in range(work.layers)
    ]
    start = torch.randn(1, work.tokens, d, **like, requires_grad=True)

    def block(tokens: Tensor, index: int) -> tuple[Tensor, ...]:
        qkv, dense, up, down = layers[index]
        heads = linear(tokens, qkv).view(1, -1, 3, work.heads, 64).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2)
        outputs = [linear(linear(linear(mixed, dense), up), down)]
        if adapters[index]:
            a, b_query, b_key, b_value, a_dense, b_dense = adapters[index]
            parts = linear(tokens, a).chunk(3, dim=-1)
            outputs += [linear(part, b) for part, b in zip(parts, (b_query, b_key, b_value), strict=True)]
            outputs.append(linear(linear(mixed, a_dense), b_dense))
        return tuple(outputs)

    ends = [torch.ones(1, work.tokens, d, **like)] * (1 + 4 * work.layers * (not full))

    def step() -> None:
        tokens, outputs = start, []
        for index in range(work.layers):
            if work.checkpointing:
                tokens, *others = checkpoint(block, tokens, index, use_reentrant=False)
            else:
                tokens, *others = block(tokens, index)
            outputs += others
        torch.autograd.backward([tokens, *outputs], ends)
        for parameter in all_tensors(layers, adapters, [[start]]):
            parameter.grad = None

    return step


def all_tensors(*groups: list[list[Tensor]]) -> Iterator[Tensor]:
    for group in groups:
        for tensors in group:
            yield from tensors


def measure(steps: dict[str, Step], work: Work, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of wall clock and of processor time for each step of each candidate, after one unmeasured step."""
    walls: dict[str, list[float]] = {name: [] for name in steps}
    cpus: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if work.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return walls, cpus


def report(walls: dict[str, list[float]], cpus: dict[str, list[float]], memory: dict[str, float], work: Work) -> None:
    """One markdown row for each candidate. Ratios are medians over rounds, each round compared with itself."""
    peak = next((value for key, value in PEAKS.items() if key in device_name(work)), None)
    print(
        "| candidate | s/step | to diffusers | processor s/step | to diffusers | tokens/s | TFLOP/s | MFU | peak GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in walls:
        seconds = statistics.median(walls[name])
        rate = work.flops / seconds / 1e12
        mfu = f"{100 * rate / peak:.0f} %" if peak and work.dtype != torch.float32 else "-"
        print(
            f"| {name} | {seconds:.3f} | {ratio(walls, name):.2f} | {statistics.median(cpus[name]):.3f} | "
            f"{ratio(cpus, name):.2f} | {work.tokens / seconds:.0f} | {rate:.3f} | {mfu} | {memory[name]:.2f} |"
        )


def ratio(times: dict[str, list[float]], name: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times["diffusers"], strict=True))


def device_name(work: Work) -> str:
    return torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "CPU"


def peak_memory(name: str, work: Work) -> float:
    """Peak of a step in a process of its own, GB: allocated on the GPU, or resident above what imports take."""
    command = [sys.executable, *sys.argv, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_own_memory(build: Callable[[Work], Step], work: Work) -> None:
    if work.device.type == "cuda":
        step = build(work)
        torch.cuda.reset_peak_memory_stats()
        step()
        step()
        print(torch.cuda.max_memory_allocated() / 1e9)
        return
    import diffusers  # noqa: F401  (both sides import the same, so that imports cancel out)
    import peft  # noqa: F401
    from cogvideox.transformer import model  # noqa: F401

    before = peak_resident_kib()
    step = build(work)
    step()
    step()
    print((peak_resident_kib() - before) * 1024 / 1e9)


def peak_resident_kib() -> int:
    """Peak of this program alone: getrusage's figure would start from the peak of the process that launched it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
