"""Our transformer against diffusers' CogVideoXTransformer3DModel: same weights, all random and non-zero, fp32."""

from __future__ import annotations

import pytest
import torch
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.weights.transformer_map import convert_state, to_diffusers, to_sat
from diffusers import CogVideoXTransformer3DModel
from transformer.tiny_transformer import CHANNELS, LATENT_GRID, TEXT_LENGTH, TEXT_WIDTH, build_tiny, inputs, randomise

SIZES = [LATENT_GRID, (1, 8, 12), (3, 6, 8), (2, 4, 12), (1, 2, 2)]


def build_theirs(final_eps: float = 1e-5) -> CogVideoXTransformer3DModel:
    frames, height, width = LATENT_GRID
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=32,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=width,
        sample_height=height,
        sample_frames=4 * (frames - 1) + 1,
        max_text_seq_length=TEXT_LENGTH,
        spatial_interpolation_scale=1.875,
    )
    theirs.norm_out.norm.eps = final_eps
    return theirs.eval()


def pair(final_eps: float = 1e-5) -> tuple[DiffusionTransformer, CogVideoXTransformer3DModel]:
    ours, theirs = build_tiny(), build_theirs(final_eps)
    randomise(ours)
    state = ours.state_dict()
    theirs.load_state_dict(dict(convert_state(state, to_diffusers(state))))
    return ours, theirs


@pytest.mark.parametrize("grid", SIZES)
@pytest.mark.parametrize(("final_eps", "tolerance"), [(1e-5, 2e-5), (1e-6, 2e-6)])
def test_forward(grid: tuple[int, int, int], final_eps: float, tolerance: float) -> None:
    ours, theirs = pair(final_eps)
    latent, timestep, context = inputs(grid)
    with torch.no_grad():
        mine = ours(latent, timestep, context)
        reference = theirs(latent, context, timestep).sample
    assert mine.shape == reference.shape
    # The tolerances are for outputs with a standard deviation of 1.
    assert (mine - reference).abs().max() / reference.std() <= tolerance


def test_forward_in_double_precision() -> None:
    """Without rounding the two are the same function."""
    ours, theirs = pair(final_eps=1e-6)
    exact = build_tiny(dtype=torch.float64)
    exact.load_state_dict(ours.state_dict() | {"mixins.pos_embed.pos_embedding": theirs.patch_embed.pos_embedding})
    latent, timestep, context = inputs()
    latent, context = latent.double(), context.double()
    with torch.no_grad():
        difference = exact(latent, timestep, context) - theirs.double()(latent, context, timestep).sample
    assert difference.abs().max() <= 1e-12


def test_every_layer_matters() -> None:
    """With these weights no part is hidden behind a zero: each layer's tensors change the output."""
    ours, _ = pair()
    sample = inputs()
    with torch.no_grad():
        before = ours(*sample)
        for name, parameter in ours.named_parameters():
            if "key_layernorm" in name and name.endswith("bias"):
                continue  # adds the same to all scores of a query: softmax does not see it
            backup = parameter.clone()
            parameter.mul_(1.5).add_(0.1 * torch.randn(parameter.shape))
            assert (ours(*sample) - before).abs().max() > 1e-5, name
            parameter.copy_(backup)


def test_gradients() -> None:
    ours, theirs = pair(final_eps=1e-6)
    latent, timestep, context = inputs()
    weight = torch.randn(latent.shape)
    (ours(latent, timestep, context) * weight).mean().backward()
    (theirs(latent, context, timestep).sample * weight).mean().backward()
    grads = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    mine = dict(convert_state(grads, to_diffusers(grads)))
    for name, parameter in theirs.named_parameters():
        error = (mine[name] - parameter.grad).abs().max()
        assert error <= 2e-5 * parameter.grad.abs().max() + 1e-8, name


def test_diffusers_weights_load_here() -> None:
    """The other direction: their weights, converted, complete our model but for the table that it computes."""
    theirs = build_theirs(final_eps=1e-6)
    randomise(theirs)
    ours = build_tiny()
    state = dict(convert_state(theirs.state_dict(), to_sat(theirs.state_dict())))
    verdict = ours.load_state_dict(state, strict=False)
    assert verdict.missing_keys == ["mixins.pos_embed.pos_embedding"]
    assert verdict.unexpected_keys == []
    latent, timestep, context = inputs()
    with torch.no_grad():
        reference = theirs(latent, context, timestep).sample
        difference = ours(latent, timestep, context) - reference
    assert difference.abs().max() / reference.std() <= 2e-6


def test_position_table_is_theirs() -> None:
    ours, theirs = build_tiny(), build_theirs()
    difference = ours.mixins["pos_embed"].pos_embedding - theirs.patch_embed.pos_embedding
    assert difference.abs().max() <= 2e-7
