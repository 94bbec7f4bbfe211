"""A GPU is found without torch where torch finds one."""

from __future__ import annotations

import torch
from cogvideox.parallel.devices import has_gpu


def test_agrees_with_torch() -> None:
    assert has_gpu() == torch.cuda.is_available()
