"""Which card a counted peak fits on."""

from __future__ import annotations

GIB = 2**30
# Memory of common cards, as sold: 24 GB RTX 3090/4090, 32 RTX 5090/V100, 40 A100, 48 A6000/L40S, 80 A100/H100, 96
# H20/GH200, 141 H200.
CARDS = (24, 32, 40, 48, 80, 96, 141)
SHARE, FIXED = 1.05, 1.5 * GIB
NOT_COUNTED = "fragmentation of torch's allocator, cuDNN's workspaces, the CUDA context (0.5 to 1 GiB), NCCL's buffers"
MARGIN = "peak x 1.05 + 1.5 GiB"


def fitting(peak: int) -> list[int]:
    """The cards that hold a peak of so many bytes with a margin for what is not counted."""
    return [card for card in CARDS if peak * SHARE + FIXED <= card * GIB]


def smallest(peak: int) -> str:
    """The first of them, for tables."""
    found = fitting(peak)
    return f"{found[0]} GB" if found else f"more than {CARDS[-1]} GB"
