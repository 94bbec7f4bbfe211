from __future__ import annotations

import pytest
import torch
from cogvideox.model.device_memory import fit_decoding, free_bytes
from vae.tiny_vae import tiny_vae


def test_a_cpu_limits_nothing() -> None:
    assert free_bytes(torch.device("cpu")) is None
    vae = tiny_vae()
    fit_decoding(vae, 10_000, 10_000, torch.device("cpu"))
    assert vae.decode_tile is None


def test_free_is_what_the_device_and_the_allocator_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    device = torch.device("cuda", 0)
    assert free_bytes(device) == 120
    vae = tiny_vae()
    fit_decoding(vae, 256, 256, device, still_to_come=200)
    assert vae.decode_tile is not None
