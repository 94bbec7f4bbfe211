"""What `python tools/memory.py` prints."""

from __future__ import annotations

from cogvideox.config.buckets import largest_buckets
from cogvideox.config.schema import Config

from simulated_cuda.cards import GIB, MARGIN, NOT_COUNTED, fitting
from simulated_cuda.measure import Memory

# Phases in the order of a run, with what they are for a reader.
TITLES = {
    "start": "build, load, encode captions",
    "engine": "optimizer is made",
    "text encoder": "text encoder",
    "VAE encode": "VAE encodes clips",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer step",
    "between": "between these",
    "save": "checkpoint is saved",
    "preview": "preview video: sampling",
    "preview decode": "preview video: decoding",
}


def report(config: Config, memory: Memory, gpus: int) -> str:
    """Several lines, with the peak by part and the cards that it fits on."""
    data, stage = config.data, config.deepspeed.stage
    assert data is not None, "training has data"
    largest = [" x ".join(map(str, each)) for each in largest_buckets(config)]
    micro = f"micro batch {memory.micro_batch}" if data.tokens_per_micro_batch is None else "micro batches by tokens"
    parts = {
        "frozen weights": memory.frozen,
        "weights that train": memory.trained,
        "optimizer: masters and moments": memory.optimizer,
        "gradients between micro batches": memory.gradients,
        "VAE": memory.vae,
        "text encoder": memory.text_encoder,
    }
    peaks = {title: memory.peaks[phase] for phase, title in TITLES.items() if phase in memory.peaks}
    where = f"one of {gpus} GPUs" if gpus > 1 else "one GPU"
    lines = [
        "counted, not measured: " + " ".join([*config.files, *config.overrides]),
        f"{where}, ZeRO {stage}, {memory.dtype}, {micro} x {' and x '.join(largest)}",
        "",
        *_table("what stays while training", parts),
        "",
        *_table("the most, all together, while", peaks),
        "",
        f"peak of training      {_gib(memory.training)}  ({memory.training:,} bytes): {_cards(memory.training)}",
        f"with preview videos   {_gib(memory.peak)}  ({memory.peak:,} bytes): {_cards(memory.peak)}",
        f"a card fits when it has {MARGIN}; not counted: {NOT_COUNTED}",
    ]
    return "\n".join(lines)


def _table(title: str, rows: dict[str, int]) -> list[str]:
    return [f"{title:34s}    GiB", *(f"  {name:32s} {_gib(size)}" for name, size in rows.items())]


def _gib(size: int) -> str:
    return f"{size / GIB:7.2f}"


def _cards(peak: int) -> str:
    found = fitting(peak)
    return f"fits {', '.join(map(str, found))} GB" if found else "fits no common card"
