"""Position schemes: rotations and tables against diffusers and direct formulas, sizes that are legal and not."""

from __future__ import annotations

import math

import pytest
import torch
from cogvideox.errors import ConfigError, ShapeError
from cogvideox.transformer.position_tables import sincos_3d
from cogvideox.transformer.rotary import rotate, rotate_to_planes, rotation_matrices
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor
from transformer.tiny_transformer import (
    LATENT_GRID,
    TEXT_LENGTH,
    build_tiny,
    family_inputs,
    inputs,
    module_nodes,
    randomise,
)

CPU = torch.device("cpu")


def turns(family: str, grid: tuple[int, int, int], resize: str = "slice", **sizes: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the video tokens, each [f*y*x, head dim] with both channels of a pair."""
    mixin = build_tiny(family=family, resize=resize, num_layers=1, **sizes).mixins["pos_embed"]
    rotation = mixin.rotation(grid, CPU)
    assert rotation.dtype == torch.float32
    assert torch.equal(rotation[:, :TEXT_LENGTH, 0], torch.eye(2)[:, None, None].expand(2, TEXT_LENGTH, 16, 2)), (
        "text stays"
    )
    cos, sin = rotation[0, TEXT_LENGTH:, 0].unbind(-1)
    assert torch.equal(rotation[1, TEXT_LENGTH:, 0], torch.stack([-sin, cos], -1))
    return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)


@pytest.mark.parametrize("grid", [(3, 4, 6), (1, 4, 6), (3, 2, 5), (2, 1, 1)])
def test_rotation_of_the_leading_corner(grid: tuple[int, int, int]) -> None:
    """Other sizes than configured count from the origin along every axis: what diffusers calls "slice"."""
    frames, height, width = grid
    theirs = get_3d_rotary_pos_embed(32, None, (height, width), frames, grid_type="slice", max_size=(4, 6))
    for mine, reference in zip(turns("5b", grid), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 6), (2, 3), (8, 12), (6, 4), (3, 10), (7, 5), (1, 1)])
def test_rotation_interpolated(size: tuple[int, int]) -> None:
    """Any height and width: diffusers' rule for CogVideoX 1.0. The configured size is left as it is."""
    crops = get_resize_crop_region_for_grid(size, 6, 4)
    theirs = get_3d_rotary_pos_embed(32, crops, size, 3)
    mine = turns("5b", (3, *size), resize="interpolate")
    for ours, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)
    if size == (4, 6):
        for ours, sliced in zip(mine, turns("5b", (3, *size)), strict=True):
            torch.testing.assert_close(ours, sliced, rtol=0, atol=1e-6)


def test_rotation_at_published_size_is_diffusers() -> None:
    sizes = {"latent_height": 300, "latent_width": 300, "num_frames": 161}
    theirs = get_3d_rotary_pos_embed(32, None, (48, 85), 11, grid_type="slice", max_size=(150, 150))
    for mine, reference in zip(turns("1.5", (11, 48, 85), **sizes), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-6)


def test_interpolation_factors_divide_positions() -> None:
    nodes = module_nodes(family="5b")
    plain = build_tiny(modules=nodes)
    nodes["pos_embed_config"]["params"] |= {"height_interpolation": 2.0, "width_interpolation": 0.5}
    whole, scaled = (
        model.mixins["pos_embed"].rotation((3, 4, 6), CPU)[0, TEXT_LENGTH:].unflatten(0, (3, 4, 6))
        for model in (plain, build_tiny(modules=nodes))
    )
    torch.testing.assert_close(scaled[:, ::2, :3], whole[:, :2, ::2], rtol=0, atol=1e-6)


def in_planes(heads: Tensor) -> Tensor:
    """Channels of [..., h] in the order of rotate_to_planes."""
    return heads.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def turned(heads: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[b, s, n, h] by angles [s, h/2] in the three forms, all in the order of planes: ours for CPU, ours for CUDA,
    diffusers'."""
    pairs = angles.repeat_interleave(2, -1)
    theirs = apply_rotary_emb(heads.transpose(1, 2), (pairs.cos(), pairs.sin())).transpose(1, 2)
    rotation = rotation_matrices(angles.cos(), angles.sin())
    return in_planes(rotate(heads, rotation)), rotate_to_planes(heads, rotation), in_planes(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rotations_are_diffusers_rotation(dtype: torch.dtype) -> None:
    """Values and gradients; in 16 bits all rotate in fp32 and round once."""
    torch.manual_seed(0)
    heads = torch.randn(2, 9, 3, 32).to(dtype).requires_grad_()
    *ours, theirs = turned(heads, torch.randn(9, 16))
    upstream = torch.randn(theirs.shape).to(dtype)
    (expected,) = torch.autograd.grad(theirs, heads, upstream)
    tolerance = {torch.bfloat16: 0.02, torch.float16: 0.002}.get(dtype, 1e-6)
    for mine in ours:
        assert mine.dtype == dtype and mine.is_contiguous()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
        (grad,) = torch.autograd.grad(mine, heads, upstream)
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planes_are_as_exact_as_the_complex_product(dtype: torch.dtype) -> None:
    """Against float64, forward and backward, at the angles of a published size."""
    torch.manual_seed(0)
    heads = torch.randn(1, 500, 4, 64).to(dtype).requires_grad_()
    angles = torch.rand(500, 32) * 90
    upstream = torch.randn(heads.shape).to(dtype)
    rotation = rotation_matrices(angles.cos(), angles.sin())
    exact = heads.detach().double().requires_grad_()
    reference = in_planes(rotate(exact, rotation.double()))
    reference.backward(upstream.double())
    errors = []
    for out in (in_planes(rotate(heads, rotation)), rotate_to_planes(heads, rotation)):
        (grad,) = torch.autograd.grad(out, heads, upstream)
        errors.append([(out - reference).abs().mean(), (grad - exact.grad).abs().mean()])
    for complex_error, planes_error in zip(*errors, strict=True):
        assert planes_error <= 1.01 * complex_error


def test_planes_take_gradients_as_attention_lays_them_out() -> None:
    heads = torch.randn(2, 5, 3, 32, requires_grad=True)
    angles = torch.randn(5, 16)
    upstream = torch.randn(2, 3, 5, 32).transpose(1, 2)
    mine, planes, _ = turned(heads, angles)
    grads = [torch.autograd.grad(out, heads, upstream)[0] for out in (mine, planes)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["5b", "1.5_i2v"])
def test_a_network_that_rotates_to_planes_computes_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny(family=family)
    randomise(model)
    results = []
    for form in (rotate, rotate_to_planes):
        monkeypatch.setattr("cogvideox.transformer.block.rotate", form)
        model.zero_grad()
        out = model(*family_inputs(family))
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=2e-6)


def test_rotation_keeps_attention_relative() -> None:
    """A score depends on the difference of two positions only."""
    rotation = build_tiny(family="5b").mixins["pos_embed"].rotation((3, 4, 6), CPU)[:, TEXT_LENGTH:]
    torch.manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 32).expand(1, 72, 1, 32) for _ in range(2))
    scores = rotate(query, rotation)[0, :, 0] @ rotate(key, rotation)[0, :, 0].T
    scores = scores.view(3, 4, 6, 3, 4, 6)
    torch.testing.assert_close(scores[1, 1, 1, 2, 3, 4], scores[0, 0, 0, 1, 2, 3], rtol=0, atol=1e-4)


def test_nothing_of_the_rotation_is_stored_or_cast() -> None:
    model = build_tiny(family="5b").to(torch.bfloat16)
    assert not [name for name in model.state_dict() if name.startswith("mixins.pos_embed")]
    assert not list(model.buffers())
    assert model.mixins["pos_embed"].rotation((1, 1, 1), CPU).dtype == torch.float32


@pytest.mark.parametrize("family", ["5b", "5b_i2v"])
def test_stored_tables_are_those_of_published_checkpoints(family: str) -> None:
    tables = build_tiny(family=family).mixins["pos_embed"].stored_tables()
    cos, sin = get_3d_rotary_pos_embed(32, None, (4, 6), 3, grid_type="slice", max_size=(4, 6))
    torch.testing.assert_close(tables["freqs_cos"], cos, rtol=0, atol=1e-6)
    torch.testing.assert_close(tables["freqs_sin"], sin, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["2b", "5b_i2v"])
def test_smaller_sizes_use_the_corner_of_the_table(family: str) -> None:
    model = build_tiny(family=family)
    randomise(model)
    frames, height, width = LATENT_GRID
    stored = model.mixins["pos_embed"].pos_embedding
    table = stored[0, TEXT_LENGTH:].view(frames, height // 2, width // 2, -1)
    text, video = torch.zeros(1, TEXT_LENGTH, 64), torch.zeros(1, 2 * 3 * 4, 64)
    placed_text, placed = model.mixins["pos_embed"].position_embedding_forward(text, video, (2, 3, 4))
    assert torch.equal(placed[0].view(2, 3, 4, 64), table[:2, :3, :4])
    assert torch.equal(placed_text, stored[:, :TEXT_LENGTH])


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 4, 6), (5, 3, 2)])
def test_sincos_table(grid: tuple[int, int, int]) -> None:
    frames, height, width = grid
    ours = sincos_3d(64, grid, (1.0, 1.875, 1.875))
    theirs = get_3d_sincos_pos_embed(64, (width, height), frames, 1.875, 1.0, output_type="pt")
    assert (ours.flatten(1, 2) - theirs).abs().max() < 2e-7


def test_sincos_table_slices_per_axis() -> None:
    assert torch.equal(sincos_3d(32, (3, 4, 6))[:2, :3, :5], sincos_3d(32, (2, 3, 5)))


@pytest.mark.parametrize("size", [(2, 3), (8, 12), (6, 4), (3, 10)])
def test_sincos_interpolated(size: tuple[int, int]) -> None:
    """Any height and width: the table that diffusers computes for it."""
    mixin = build_tiny(resize="interpolate").mixins["pos_embed"]
    tokens = math.prod(size) * 2
    text, video = mixin.position_embedding_forward(
        torch.zeros(1, TEXT_LENGTH, 64), torch.zeros(1, tokens, 64), (2, *size)
    )
    theirs = get_3d_sincos_pos_embed(64, (size[1], size[0]), 2, 1.875, 1.0, output_type="pt")
    torch.testing.assert_close(video[0], theirs.flatten(0, 1).float(), rtol=0, atol=2e-7)
    assert not text.any()


@pytest.mark.parametrize("family", ["2b", "5b", "1.5"])
def test_interpolation_takes_any_height_and_width(family: str) -> None:
    model = build_tiny(family=family, resize="interpolate")
    randomise(model)
    sample = family_inputs(family, (3, 16, 10))
    assert model(*sample).shape == sample[0].shape
    with pytest.raises(ShapeError, match=r"position table \(\d+, any, any\); nearest legal: \(\d, 16, 10\)"):
        model(*inputs((8, 16, 10)))


@pytest.mark.parametrize("family", ["5b", "5b_i2v"])
@pytest.mark.parametrize(
    ("grid", "nearest"), [((3, 10, 12), r"3, 8, 12"), ((4, 8, 12), r"3, 8, 12"), ((3, 7, 99), r"3, 8, 12")]
)
def test_sizes_beyond_the_configured_one(family: str, grid: tuple[int, int, int], nearest: str) -> None:
    with pytest.raises(ShapeError, match=rf"nearest legal: \({nearest}\)"):
        build_tiny(family=family)(*family_inputs(family, grid))


def test_frames_of_1_5() -> None:
    """An odd configured count is padded; as many tokens as configured latent frames are legal (10 seconds: 42)."""
    model = build_tiny(family="1.5", num_frames=81)
    assert model.network.latent_frames == 21
    assert model.network.token_grid == (11, 4, 6)
    for frames in (2, 22, 42):
        assert model(*inputs((frames, 2, 2))).shape == (2, frames, 4, 2, 2)
    with pytest.raises(ShapeError, match=r"position table \(42, 8, 12\); nearest legal: \(42, 2, 2\)"):
        model(*inputs((44, 2, 2)))
    with pytest.raises(ShapeError, match=r"does not divide into patches \(2, 2, 2\); nearest legal: \(4, 2, 2\)"):
        model(*inputs((3, 2, 2)))


def test_heads_that_do_not_split() -> None:
    with pytest.raises(ConfigError, match="heads of width 8; rotary positions need a multiple of 16"):
        build_tiny(family="5b", num_attention_heads=8)


def test_learned_tables_are_not_interpolated() -> None:
    with pytest.raises(ConfigError, match=r"learned table .* can't be interpolated"):
        build_tiny(family="5b_i2v", resize="interpolate")


def test_learned_table_is_trained() -> None:
    model = build_tiny(family="5b_i2v")
    table = model.mixins["pos_embed"].pos_embedding
    assert table.requires_grad
    assert not table.any()
    randomise(model)
    model(*family_inputs("5b_i2v")).square().mean().backward()
    assert table.grad.abs().amin(-1).min() > 0, "every row, text included"
