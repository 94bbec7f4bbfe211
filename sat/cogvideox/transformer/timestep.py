"""The sinusoidal embedding of the timestep.

Letters: b batch, d hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MAX_PERIOD = 10000.0


def sinusoidal_embedding(timestep: Tensor, width: int) -> Tensor:
    """Embed timesteps [b] as [b, width] fp32, the cosine half first. `width` is even.

    Computed in fp32 whatever the parameters' dtype: timesteps up to 999 do not fit bf16.
    Source: "Denoising Diffusion Probabilistic Models" (2006.11239), in the half order of CogVideoX.
    """
    assert width % 2 == 0, f"the timestep embedding needs an even width, not {width}"
    half = width // 2
    # In this order of operations: at timestep 999 the last bit of a frequency is 6e-5 in the angle.
    exponent = -math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * torch.exp(exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
