"""Our transformer against diffusers' CogVideoXTransformer3DModel: same weights, all random and non-zero, every family.

The tolerances are for outputs with a standard deviation of 1. That both compute the same function is tested in double
precision; in fp32 they differ by rounding, by how much depends on the processor's kernels.
"""

from __future__ import annotations

import pytest
import torch
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.weights.transformer_map import convert_state, to_diffusers, to_sat
from diffusers import CogVideoXTransformer3DModel
from diffusers.models import embeddings
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor
from transformer.tiny_transformer import (
    CHANNELS,
    FAMILIES,
    LATENT_GRID,
    TEXT_LENGTH,
    TEXT_WIDTH,
    build_tiny,
    family_inputs,
    inputs,
    randomise,
)

TABLE = "mixins.pos_embed.pos_embedding"
UNUSED = "transformer.position_embeddings.weight"  # stored by rotary models
SIZES = [LATENT_GRID, (1, 8, 12), (3, 6, 8), (2, 4, 12), (1, 2, 2)]
CASES = [(family, grid) for family in FAMILIES for grid in SIZES]
Sample = tuple[Tensor, Tensor, Tensor]
# Rounding in fp32 (unit 6e-8): some 40 operations in a row add up like a random walk, and the largest of some thousand
# outputs lies 4 deviations out, so each side may be off by 4 * sqrt(40) * 6e-8 = 1.5e-6, and the two by 3e-6. Random
# weights may enlarge an error on its way. The next worse kind of arithmetic (tf32) would be off by 1e-3.
ROUNDING = 5e-6


def build_theirs(
    family: str = "2b", final_eps: float = 1e-5, grid: tuple[int, int, int] = LATENT_GRID
) -> CogVideoXTransformer3DModel:
    sizes = FAMILIES[family]
    frames, height, width = grid
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=sizes.get("in_channels", CHANNELS),
        out_channels=CHANNELS,
        time_embed_dim=32,
        ofs_embed_dim=sizes.get("ofs_embed_dim"),
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=width,
        sample_height=height,
        sample_frames=4 * (frames - 1) + 1,
        patch_size_t=2 if "patch_size" in sizes else None,
        max_text_seq_length=TEXT_LENGTH,
        spatial_interpolation_scale=1.875,
        use_rotary_positional_embeddings=family != "2b",
        use_learned_positional_embeddings=family == "5b_i2v",
    )
    theirs.norm_out.norm.eps = final_eps
    return theirs.eval()


def pair(
    family: str = "2b",
    final_eps: float = 1e-5,
    grid: tuple[int, int, int] = LATENT_GRID,
    resize: str = "slice",
) -> tuple[DiffusionTransformer, CogVideoXTransformer3DModel]:
    """Both with the same weights. `grid`: what theirs is built for, because it can't slice a learned table."""
    ours, theirs = build_tiny(family=family, resize=resize), build_theirs(family, final_eps, grid)
    randomise(ours)
    state = ours.state_dict()
    converted = dict(convert_state(state, to_diffusers(state, ours.network.patch_size)))
    if family == "5b_i2v":
        text, video = state[TABLE].split([TEXT_LENGTH, 72], dim=1)
        f, y, x = grid[0], grid[1] // 2, grid[2] // 2
        corner = video.unflatten(1, (3, 4, 6))[:, :f, :y, :x].flatten(1, 3)
        assert torch.equal(converted["patch_embed.pos_embedding"], state[TABLE])
        converted["patch_embed.pos_embedding"] = torch.cat([text, corner], dim=1)
    theirs.load_state_dict(converted)
    return ours, theirs


def their_prediction(
    theirs: CogVideoXTransformer3DModel, sample: Sample, *, interpolate: bool = False, ofs: float = 2.0
) -> Tensor:
    """With the rotary table and the constant that their pipelines hand over."""
    latent, timestep, context = sample
    config = theirs.config
    frames, size = latent.shape[1], (latent.shape[3] // 2, latent.shape[4] // 2)
    rotary = None
    if config.use_rotary_positional_embeddings and interpolate:
        crops = get_resize_crop_region_for_grid(size, config.sample_width // 2, config.sample_height // 2)
        rotary = get_3d_rotary_pos_embed(config.attention_head_dim, crops, size, frames)
    elif config.use_rotary_positional_embeddings:
        tokens = frames // (config.patch_size_t or 1)
        rotary = get_3d_rotary_pos_embed(
            config.attention_head_dim, None, size, tokens, grid_type="slice", max_size=(100, 100)
        )
    constant = None if config.ofs_embed_dim is None else latent.new_full((1,), ofs)
    return theirs(latent, context, timestep, ofs=constant, image_rotary_emb=rotary).sample


def error(mine: Tensor, reference: Tensor) -> Tensor:
    assert mine.shape == reference.shape
    return (mine - reference).abs().max() / reference.std()


@pytest.mark.parametrize(("family", "grid"), CASES)
def test_forward(family: str, grid: tuple[int, int, int]) -> None:
    """As diffusers ships it, and with the epsilon of the last norm set to what the original uses."""
    sample = family_inputs(family, grid)
    ours, theirs = pair(family, grid=grid)
    with torch.no_grad():
        mine = ours(*sample)
        assert error(mine, their_prediction(theirs, sample)) <= 2e-5
        theirs.norm_out.norm.eps = 1e-6
        assert error(mine, their_prediction(theirs, sample)) <= ROUNDING


@pytest.mark.parametrize("frames", [2, 6, 12])
def test_frame_counts_of_1_5(frames: int) -> None:
    """More tokens along time than the configured clip has, up to its latent frames."""
    ours, theirs = pair("1.5", 1e-6)
    sample = inputs((frames, 4, 6))
    model = build_tiny(family="1.5", num_frames=21)
    model.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert error(model(*sample), their_prediction(theirs, sample)) <= ROUNDING


@pytest.mark.parametrize("family", ["2b", "5b"])
@pytest.mark.parametrize("size", [(8, 12), (16, 24), (12, 8), (6, 20), (4, 4)])
def test_interpolated_sizes(family: str, size: tuple[int, int]) -> None:
    """`resize: interpolate` takes other heights and widths as diffusers does for CogVideoX 1.0."""
    ours, theirs = pair(family, 1e-6, resize="interpolate")
    sample = family_inputs(family, (2, *size))
    with torch.no_grad():
        assert error(ours(*sample), their_prediction(theirs, sample, interpolate=True)) <= ROUNDING


@pytest.mark.parametrize("ofs", [0.0, 2.0, 7.5])
def test_ofs(ofs: float) -> None:
    ours, theirs = pair("1.5_i2v", 1e-6)
    ours.ofs = ofs
    sample = family_inputs("1.5_i2v")
    with torch.no_grad():
        assert error(ours(*sample), their_prediction(theirs, sample, ofs=ofs)) <= ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_in_double_precision(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rounding the two are the same function. Theirs rotates in fp32 whatever comes in, so that is replaced."""
    ours, theirs = pair(family, 1e-6)
    exact = build_tiny(family=family, dtype=torch.float64)
    table = {TABLE: theirs.patch_embed.pos_embedding} if family == "2b" else {}
    exact.load_state_dict(ours.state_dict() | table)
    monkeypatch.setattr(embeddings, "apply_rotary_emb", _rotate_in_double)
    latent, timestep, context = family_inputs(family)
    sample = latent.double(), timestep, context.double()
    with torch.no_grad():
        difference = exact(*sample) - their_prediction(theirs.double(), sample)
    assert difference.abs().max() <= 1e-12


@pytest.mark.parametrize("family", ["2b", "5b_i2v", "1.5_i2v"])
def test_every_layer_matters(family: str) -> None:
    """With these weights no part is hidden behind a zero: each layer's tensors change the output."""
    ours = build_tiny(family=family)
    randomise(ours)
    sample = family_inputs(family, (2, 4, 4))
    with torch.no_grad():
        before = ours(*sample)
        for name, parameter in ours.named_parameters():
            if name == UNUSED or (family == "2b" and "key_layernorm" in name and name.endswith("bias")):
                continue  # a bias of unrotated keys adds the same to all scores of a query: softmax does not see it
            backup = parameter.clone()
            parameter.mul_(1.5).add_(0.1 * torch.randn(parameter.shape))
            assert (ours(*sample) - before).abs().max() > 1e-5, name
            parameter.copy_(backup)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(family: str) -> None:
    """Of a loss with respect to the input, the context and every weight."""
    ours, theirs = pair(family, 1e-6)
    latent, timestep, context = family_inputs(family)
    weight = torch.randn(latent[:, :, :CHANNELS].shape)
    grads = []
    for predict in (ours, lambda *sample: their_prediction(theirs, sample)):
        wanted = [latent.clone().requires_grad_(), context.clone().requires_grad_()]
        (predict(wanted[0], timestep, wanted[1]) * weight).mean().backward()
        grads.append([each.grad for each in wanted])
    for mine, reference in zip(*grads, strict=True):
        _assert_gradient(mine, reference, "inputs")
    stored = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    names = [*stored, UNUSED] if family != "2b" else [*stored]
    converted = dict(convert_state(stored, to_diffusers(names, ours.network.patch_size)))
    for name, parameter in theirs.named_parameters():
        _assert_gradient(converted[name], parameter.grad, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_weights_load_here(family: str) -> None:
    """The other direction: their weights, converted, complete our model but for what it computes or never reads."""
    theirs = build_theirs(family, 1e-6)
    randomise(theirs)
    if family == "5b_i2v":
        theirs.patch_embed.pos_embedding.normal_(std=0.3)
    ours = build_tiny(family=family)
    state = dict(convert_state(theirs.state_dict(), to_sat(theirs.state_dict(), ours.network.patch_size)))
    verdict = ours.load_state_dict(state, strict=False)
    assert verdict.missing_keys == [TABLE if family == "2b" else UNUSED]
    assert verdict.unexpected_keys == []
    sample = family_inputs(family)
    with torch.no_grad():
        assert error(ours(*sample), their_prediction(theirs, sample)) <= ROUNDING


def test_position_table_is_theirs() -> None:
    ours, theirs = build_tiny(), build_theirs()
    difference = ours.mixins["pos_embed"].pos_embedding - theirs.patch_embed.pos_embedding
    assert difference.abs().max() <= 2e-7


def _assert_gradient(mine: Tensor, reference: Tensor, name: str) -> None:
    difference = (mine - reference).abs().max()
    assert difference <= 2e-5 * reference.abs().max() + 1e-8, name


def _rotate_in_double(heads: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """What diffusers' apply_rotary_emb computes on [b, n, s, h], without its cast to fp32."""
    cos, sin = cos_sin
    even, odd = heads[..., 0::2], heads[..., 1::2]
    return heads * cos + torch.stack([-odd, even], dim=-1).flatten(3) * sin
