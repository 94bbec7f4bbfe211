"""The maps of a decoder's norms on a GPU against those that each norm makes by itself, and the moments behind them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cogvideox.vae import norm_silu
from cogvideox.vae.blocks import SpatialNorm
from cogvideox.vae.causal_conv import CausalState
from cogvideox.vae.latent_maps import LatentMaps
from cogvideox.vae.norm_silu import GPU_WAY, Moments, Way, group_moments
from torch import Tensor
from vae.tiny_vae import randomise

AT_ONCE = dataclasses.replace(GPU_WAY, copied_elements=2**30)
IN_ROWS = dataclasses.replace(GPU_WAY, copied_elements=0)


def use(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_silu, "way_for", lambda device: way)


def norms_and_latent(dtype: torch.dtype) -> tuple[list[SpatialNorm], Tensor]:
    norms = [SpatialNorm(8, 5, 4), SpatialNorm(12, 5, 4)]
    for seed, norm in enumerate(norms):
        randomise(norm, seed)
        norm.to(dtype).requires_grad_(False)
    return norms, torch.randn(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("way", [AT_ONCE, IN_ROWS], ids=["at once", "in rows"])
@torch.no_grad()
def test_maps_are_those_of_each_norm(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, against the maps of a CPU; features in two pieces, of twice the latent's size."""
    norms, latent = norms_and_latent(torch.float64)
    features = [torch.randn(2, norm.norm_layer.num_channels, 9, 8, 12, dtype=torch.float64) + 1 for norm in norms]
    expected = [
        norm.maps(x.split([5, 4], dim=2), latent, CausalState()) for norm, x in zip(norms, features, strict=True)
    ]
    use(way, monkeypatch)
    state = CausalState(latent_maps=LatentMaps([norm.weights() for norm in norms], latent))
    for norm, x, before in zip(norms, features, expected, strict=True):
        maps = norm.maps(x.split([5, 4], dim=2), latent, state)
        torch.testing.assert_close(maps.scale, before.scale, rtol=0, atol=1e-12)
        torch.testing.assert_close(maps.shift, before.shift, rtol=0, atol=1e-12)
        assert (maps.num_frames, maps.lone_first_frame) == (9, True)


@torch.no_grad()
def test_maps_of_few_digits_are_more_exact_than_those_of_each_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each norm's convolutions round to the weights' type; here maps stay in float32."""
    norms, latent = norms_and_latent(torch.bfloat16)
    x = torch.randn(2, 8, 9, 8, 12).bfloat16()
    alone = norms[0].maps([x], latent, CausalState())
    use(IN_ROWS, monkeypatch)
    state = CausalState(latent_maps=LatentMaps([norm.weights() for norm in norms], latent))
    maps = norms[0].maps([x], latent, state)
    exact = norms[0].double().maps([x.double()], latent.double(), CausalState())
    assert maps.scale.dtype == torch.float32
    for mine, other, truth in ((maps.scale, alone.scale, exact.scale), (maps.shift, alone.shift, exact.shift)):
        assert (mine - truth).abs().max() < 1e-5 < (other - truth).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pieces", [1, 3])
@torch.no_grad()
def test_moments_at_once_are_those_of_rows(dtype: torch.dtype, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of 30 deviations costs no digits."""
    x = (torch.randn(2, 8, 6, 12, 16, dtype=torch.float64) + 30).to(dtype)
    groups = x.double().unflatten(1, (4, -1)).flatten(2)
    mean, rstd = groups.mean(2), (groups.var(2, correction=0) + 1e-6).rsqrt()
    for way in (AT_ONCE, IN_ROWS, norm_silu.CPU_WAY):
        use(way, monkeypatch)
        found = group_moments(x.chunk(pieces, dim=2), 4, 1e-6)
        assert isinstance(found, Moments)
        torch.testing.assert_close(found.sums.double() / found.count, mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.rstd.double(), rstd, rtol=1e-4, atol=0)


@torch.no_grad()
def test_equal_values_have_no_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding must not make it negative."""
    x = torch.full((1, 4, 3, 5, 7), 1234.5)
    for way in (AT_ONCE, IN_ROWS, norm_silu.CPU_WAY):
        use(way, monkeypatch)
        rstd = group_moments([x], 2, 1e-6).rstd
        assert rstd.isfinite().all() and (rstd > 0).all()


def test_which_features_are_copied() -> None:
    """float32 needs no copy in one piece; few elements are worth one; a CPU never."""
    small, large = torch.zeros(1, 8, 2, 2, 2), torch.empty(1, 2, 2**12, 32, 32 + 1, device="meta")
    assert GPU_WAY.takes_moments_at_once([small.bfloat16()]) and GPU_WAY.takes_moments_at_once([small, small])
    assert GPU_WAY.takes_moments_at_once([large]) and not GPU_WAY.takes_moments_at_once([large, large])
    assert not GPU_WAY.takes_moments_at_once([large.bfloat16()])
    assert not norm_silu.CPU_WAY.takes_moments_at_once([small])
