"""Small facts of the simulated device, looked at in a process of its own: prints JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tools")]


def main() -> dict[str, Any]:
    from simulated_cuda.device import start

    start()
    import torch
    from simulated_cuda.launches import Launches
    from simulated_cuda.live_memory import LiveMemory
    from simulated_cuda.tensors import DeviceTensors
    from simulated_cuda.torch_cuda import STATE

    facts: dict[str, Any] = {"preload": os.environ.get("LD_PRELOAD", "")}
    with DeviceTensors() as device, LiveMemory() as live, Launches() as launches:
        facts["counting"] = list(counting(torch, live))
        facts["phases"] = phases(torch, live)
        facts["launches"] = work(torch, launches)
        facts["moved"] = moved(torch)
        facts["pinned"] = [device.is_pinned(each) for each in pinned(torch)]
        facts["reads"] = reads(torch)
        facts["attention"] = attention(torch, live)
        facts["free"] = STATE.total - torch.cuda.mem_get_info()[0] == live.now == torch.cuda.memory_allocated()
        facts["vae"] = vae(torch, live)
    return facts


def counting(torch: Any, live: Any) -> Any:
    """Bytes that live after each line."""
    first = torch.zeros(1000, device="cuda")  # 4000 bytes, 8 blocks of 512
    yield live.now
    view = first.view(10, 100)[2:]
    yield live.now
    second = view + 1  # 3200 bytes, 7 blocks
    yield live.now
    del first
    yield live.now
    del view, second
    yield live.now
    torch.zeros(1000)
    yield live.now


def phases(torch: Any, live: Any) -> dict[str, int]:
    live.forget(*list(live.peaks))
    with live.phase("outer"):
        kept = torch.empty(1024, dtype=torch.uint8, device="cuda")
        with live.phase("inner"):
            torch.empty(2048, dtype=torch.uint8, device="cuda")
    del kept
    return dict(live.peaks)


def work(torch: Any, launches: Any) -> list[int]:
    launches.forget()
    x = torch.ones(4, 256, device="cuda")  # written: 4096 bytes
    x.view(-1)[:512].add_(x.view(-1)[512:])  # 2048 read, 2048 read and written
    torch.empty(100, device="cuda")
    return [sum(launches.launches.values()), sum(launches.touched.values())]


def moved(torch: Any) -> list[Any]:
    layer = torch.nn.Linear(4, 4)
    before = layer.weight
    layer.to("cuda", torch.bfloat16)
    layer.bias.data = layer.bias.data.to("cpu")
    return [layer.weight is before, str(layer.weight.device), str(layer.weight.dtype), str(layer.bias.device)]


def pinned(torch: Any) -> list[Any]:
    asked = torch.empty(4, pin_memory=True)
    return [asked, asked[1:], torch.empty(4).pin_memory(), torch.empty(4)]


def reads(torch: Any) -> list[Any]:
    x = torch.ones(3, device="cuda")
    overflow = (x.isinf() | x.isnan()).any()
    return [
        x.isfinite().all().item(),
        overflow.item(),
        (~x.isfinite().all()).item(),
        x.sum().item(),
        x.isfinite().tolist(),
    ]


def attention(torch: Any, live: Any) -> list[int]:
    """What attention takes beside its result, without and with a mask: no matrix of scores (64 MiB)."""
    q = torch.empty(1, 1, 4096, 64, dtype=torch.bfloat16, device="cuda")
    found = []
    for mask in (None, torch.zeros(1, 1, 1, 4096, dtype=torch.bfloat16, device="cuda").expand(1, 1, 4096, 4096)):
        live.forget(*list(live.peaks))
        before = live.now
        torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        found.append(live.peak - before)
    return found


def vae(torch: Any, live: Any) -> list[int]:
    """A small autoencoder, counted here and by tools/vae_memory.py on the meta device: encode, decode."""
    from cogvideox.vae.autoencoder import VideoAutoencoder
    from simulated_cuda.meta_memory import decode_bytes, encode_bytes

    def build() -> Any:
        model = VideoAutoencoder(ch=32, ch_mult=(1, 2), num_res_blocks=1, temporal_compression=2, encode_chunk_frames=4)
        model.freeze()
        return model

    there = build().to("cuda", torch.bfloat16)
    found = []
    live.forget(*list(live.peaks))
    before = live.now
    there.encode(torch.zeros(1, 13, 3, 32, 48, dtype=torch.uint8))
    found.append(live.peak - before)
    latent = torch.zeros(1, 7, 16, 16, 24, device="cuda")
    live.forget(*list(live.peaks))
    before = live.now
    for _ in there.decode_chunks(latent):
        pass
    found.append(live.peak - before)
    del there, latent
    other = build().to("meta", torch.bfloat16)
    return [*found, encode_bytes(other, 13, 32, 48), decode_bytes(other, 13, 32, 48)]


if __name__ == "__main__":
    print(json.dumps(main()))
    sys.stdout.flush()
    os._exit(0)
