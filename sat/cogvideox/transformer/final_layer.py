"""Tokens back to a latent video.

Letters: b batch, f latent frames, c channels, y x latent height/width, v video tokens, d hidden,
e time embedding width, (pt, ph, pw) the patch.
"""

from __future__ import annotations

from einops import rearrange
from sat.model.base_model import BaseMixin, BaseModel
from torch import Tensor, nn

from cogvideox.transformer.linear import Linear
from cogvideox.transformer.modulation import Modulation, modulate
from cogvideox.transformer.shape import NetworkShape

FINAL_NORM_EPS = 1e-6


class FinalLayerMixin(BaseMixin):
    """Overrides SAT's `final_forward` hook. `norm_final`, `linear` and `adaLN_modulation` are stored names."""

    def __init__(self, *, network: NetworkShape) -> None:
        super().__init__()
        self.patch_size = network.patch_size
        width, dtype = network.hidden_size, network.dtype
        self.norm_final = nn.LayerNorm(width, eps=FINAL_NORM_EPS, dtype=dtype)
        self.linear = Linear(width, network.patch_volume * network.out_channels, dtype=dtype)
        self.adaLN_modulation = Modulation(network.time_embed_dim, 2, width, dtype)

    def reinit(self, parent_model: BaseModel | None = None) -> None:
        """Zero modulation and bias, Xavier projection."""
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation.init_zero()

    def final_forward(self, video: Tensor, conditioning: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """video [b, v, d] and the SiLU of the time embedding [b, e] -> [b, f, c, y, x]; grid is v = f * y * x."""
        patches = self.linear(modulate(self.norm_final(video), *self.adaLN_modulation.chunks(conditioning)))
        frames, height, width = grid
        pt, ph, pw = self.patch_size
        return rearrange(
            patches,
            "b (f y x) (c pt ph pw) -> b (f pt) c (y ph) (x pw)",
            f=frames,
            y=height,
            x=width,
            pt=pt,
            ph=ph,
            pw=pw,
        )
