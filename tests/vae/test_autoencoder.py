from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cogvideox.errors import CheckpointError, ConfigError, ShapeError
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.weights import vae_map
from vae.tiny_vae import CH, CH_MULT, GROUPS, RES_BLOCKS, clip, random_latent, tiny_vae, without_norms

STORED_NAMES = json.loads(Path(__file__).with_name("stored_names.json").read_text())


def test_full_size_has_exactly_the_stored_tensors() -> None:
    with torch.device("meta"):
        vae = VideoAutoencoder()
    assert {name: list(value.shape) for name, value in vae.state_dict().items()} == STORED_NAMES


# Chunks, state


@pytest.mark.parametrize("chunk", [4, 8, 12])
def test_encoding_in_chunks_carries_the_exact_state(chunk: int) -> None:
    vae = without_norms(tiny_vae(dtype=torch.float64, frozen=False))
    video = clip(25, 8, 8, batch=1).double()
    whole = vae.encode(video).mean
    vae.encode_chunk_frames = chunk
    torch.testing.assert_close(vae.encode(video).mean, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [5, 6, 7])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_decoding_in_chunks_carries_the_exact_state(frames: int, chunk: int) -> None:
    vae = without_norms(tiny_vae(dtype=torch.float64, frozen=False, decode_chunk_latent_frames=None))
    latent = random_latent(frames, 1, 2, batch=1).double()
    whole = vae.decode(latent)
    vae.decode_chunk_latent_frames = chunk
    torch.testing.assert_close(vae.decode(latent), whole, rtol=0, atol=1e-12)


def test_frozen_and_trainable_agree_in_float64() -> None:
    frozen, trainable = tiny_vae(dtype=torch.float64), tiny_vae(dtype=torch.float64, frozen=False)
    video, latent = clip(9, 40, 40, batch=1).double(), random_latent(5, 5, 5, batch=1).double()
    torch.testing.assert_close(frozen.encode(video).mean, trainable.encode(video).mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(frozen.decode(latent), trainable.decode(latent), rtol=0, atol=1e-12)


def test_nothing_leaks_into_the_next_video() -> None:
    vae = tiny_vae(encode_chunk_frames=4)
    latent, video = random_latent(5), clip(13)
    decoded, encoded = vae.decode(latent), vae.encode(video).mean
    vae.decode(random_latent(4, seed=7))
    vae.encode(clip(9, seed=8))
    abandoned = vae.decode_chunks(random_latent(5, seed=9))
    next(abandoned)
    with pytest.raises(ShapeError):
        vae.encode(clip(10))
    assert torch.equal(vae.decode(latent), decoded)
    assert torch.equal(vae.encode(video).mean, encoded)


def test_two_videos_decode_side_by_side() -> None:
    vae = tiny_vae()
    first, second = random_latent(5, seed=3), random_latent(5, seed=4)
    pairs = list(zip(vae.decode_chunks(first), vae.decode_chunks(second), strict=True))
    assert torch.equal(torch.cat([a for a, _ in pairs], dim=1), vae.decode(first))
    assert torch.equal(torch.cat([b for _, b in pairs], dim=1), vae.decode(second))


def test_chunks_arrive_as_they_are_decoded() -> None:
    latent = random_latent(5)
    chunks = list(tiny_vae().decode_chunks(latent))
    assert [chunk.shape for chunk in chunks] == [(2, 9, 3, 16, 24), (2, 8, 3, 16, 24)]


def test_gradient_mode_outside_is_left_alone_between_chunks() -> None:
    modes = [torch.is_grad_enabled() for _ in tiny_vae().decode_chunks(random_latent(5))]
    assert modes == [True, True]


# Inputs and outputs


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (5, 2), (9, 3), (13, 4), (17, 5)])
@pytest.mark.parametrize("frozen", [True, False])
def test_as_many_frames_come_out_as_went_in(frames: int, latent_frames: int, frozen: bool) -> None:
    vae = tiny_vae(frozen=frozen)
    latent = vae.encode(clip(frames)).mode()
    assert latent.shape == (2, latent_frames, 16, 2, 3)
    assert vae.decode(latent).shape == (2, frames, 3, 16, 24)
    assert sum(chunk.shape[1] for chunk in vae.decode_chunks(latent)) == frames
    assert vae.decode(latent, lone_first_frame=False).shape == (2, 4 * latent_frames, 3, 16, 24)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_the_first_frames_are_the_same_however_many_follow(frames: int) -> None:
    """The first latent stands for one frame whether their number is odd or even."""
    vae = without_norms(tiny_vae(dtype=torch.float64, frozen=False))
    latent = random_latent(5, 1, 2, batch=1).double()
    part = vae.decode(latent[:, :frames])
    torch.testing.assert_close(part, vae.decode(latent)[:, : 4 * frames - 3], rtol=0, atol=1e-12)


def test_inputs_are_not_changed() -> None:
    vae = tiny_vae()
    video, latent = clip(5), random_latent(3)
    before = video.clone(), latent.clone()
    vae.encode(video)
    vae.decode(latent)
    assert torch.equal(video, before[0]) and torch.equal(latent, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    vae, exact = tiny_vae(dtype=dtype), tiny_vae(dtype=torch.float64)
    video, latent = clip(5), random_latent(3)
    posterior, decoded = vae.encode(video), vae.decode(latent)
    assert posterior.mean.dtype == posterior.logvar.dtype == torch.promote_types(dtype, torch.float32)
    assert decoded.dtype == dtype
    tolerance = 60 * torch.finfo(dtype).eps
    assert (posterior.mean - exact.encode(video).mean).abs().max() < tolerance
    assert (decoded - exact.decode(latent)).abs().max() < tolerance


def test_a_larger_batch_is_the_same_as_one_by_one() -> None:
    vae = tiny_vae()
    video = clip(5, batch=3)
    single = torch.cat([vae.encode(video[i : i + 1]).mean for i in range(3)])
    torch.testing.assert_close(vae.encode(video).mean, single, rtol=0, atol=1e-5)


def test_video_in_any_memory_layout() -> None:
    vae = tiny_vae()
    video = clip(5)
    strided = video.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(vae.encode(strided).mean, vae.encode(video).mean)


# Gradients


def test_gradients_reach_every_parameter_through_both_halves() -> None:
    vae = tiny_vae(frozen=False, decode_chunk_latent_frames=None)
    video = clip(9)
    posterior = vae.encode(video)
    loss = (vae.decode(posterior.sample()) - video).abs().mean() + 1e-6 * posterior.kl().mean()
    loss.backward()
    lost = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not lost


def test_chunked_decoding_has_gradients_too() -> None:
    vae = tiny_vae(frozen=False)
    latent = random_latent(5).requires_grad_()
    vae.decode(latent).square().mean().backward()
    assert latent.grad is not None and (latent.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_gradient_of_the_input_through_frozen_weights() -> None:
    vae, latent = tiny_vae(dtype=torch.float64), random_latent(2, 1, 1, batch=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: vae.decode(z).mean(dim=(1, 3, 4)), latent, fast_mode=True)


def test_frozen_runs_without_graph() -> None:
    vae = tiny_vae()
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    assert not vae.encode(clip(1)).mean.requires_grad
    assert not vae.decode(random_latent(1)).requires_grad


# User errors


@pytest.mark.parametrize(("frames", "nearest"), [(2, "1 or 5"), (4, "1 or 5"), (16, "13 or 17"), (48, "45 or 49")])
def test_frame_count_names_the_nearest_legal_ones(frames: int, nearest: str) -> None:
    with pytest.raises(
        ShapeError, match=rf"clip of {frames} frames .* must be 4k \+ 1, not {frames}; nearest: {nearest}"
    ):
        tiny_vae().encode(clip(frames, 8, 8))


@pytest.mark.parametrize(
    ("size", "message"),
    [((20, 24), r"multiples of 8, not \[20, 24\]; nearest: \[16, 24\]"), ((16, 4), r"nearest: \[16, 8\]$")],
)
def test_size_names_the_nearest_legal_ones(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        tiny_vae().encode(clip(1, *size))


def test_wrong_layout_or_dtype() -> None:
    vae = tiny_vae()
    with pytest.raises(ShapeError, match=r"video must be b t c h w with c = 3, got shape \(2, 3, 5, 16, 24\)"):
        vae.encode(clip(5).transpose(1, 2))
    with pytest.raises(ShapeError, match=r"video must be floating point or uint8, got torch\.int64"):
        vae.encode(torch.zeros(1, 1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"latent must be floating point, got torch\.uint8"):
        vae.decode(torch.zeros(1, 1, 16, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"latent must be b f c y x with c = 16, got shape \(1, 3, 5, 2, 2\)"):
        vae.decode_chunks(torch.zeros(1, 3, 5, 2, 2))
    with pytest.raises(ShapeError, match="there is nothing to decode"):
        vae.decode(torch.zeros(1, 0, 16, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm_num_groups": 3}, "norm_num_groups 3 must divide every width"),
        ({"temporal_compression": 3}, "temporal_compression 3 is not possible with 4 levels; valid: 1, 2, 4, 8"),
        ({"temporal_compression": 16}, "valid: 1, 2, 4, 8"),
        ({"temporal_compression": 0}, "valid: 1, 2, 4, 8"),
        ({"encode_chunk_frames": 6}, "encode_chunk_frames must be null or a multiple of 4, got 6"),
        ({"decode_chunk_latent_frames": 0}, "decode_chunk_latent_frames must be null or at least 1, got 0"),
        ({"ch_mult": []}, "needs levels and blocks"),
        ({"num_res_blocks": 0}, "needs levels and blocks"),
    ],
)
def test_impossible_architectures(arguments: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        VideoAutoencoder(**{"ch": 8, "norm_num_groups": 4, **arguments})  # type: ignore[arg-type]


# Weights


def load_tiny(path: Path) -> VideoAutoencoder:
    return VideoAutoencoder(str(path), ch=CH, ch_mult=CH_MULT, num_res_blocks=RES_BLOCKS, norm_num_groups=GROUPS)


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(())}}, path)
    return path


def test_loading_a_sat_file_freezes(tmp_path: Path) -> None:
    source = tiny_vae()
    loaded = load_tiny(save(tmp_path / "3d-vae.pt", source.state_dict()))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("whole_folder", [True, False])
def test_loading_a_diffusers_file_or_folder(tmp_path: Path, whole_folder: bool) -> None:
    from safetensors.torch import save_file

    source = tiny_vae(frozen=False)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({vae_map.sat_to_diffusers(name): value for name, value in source.state_dict().items()}, file)
    loaded = load_tiny(tmp_path if whole_folder else file)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = tiny_vae().state_dict()
    del state["encoder.conv_in.conv.bias"]
    state["decoder.extra.weight"] = torch.zeros(1)
    state["decoder.conv_out.conv.bias"] = torch.zeros(4)
    with pytest.raises(
        CheckpointError,
        match=r"missing: encoder\.conv_in\.conv\.bias; unexpected: decoder\.extra\.weight; "
        r"wrong shape: decoder\.conv_out\.conv\.bias \(4,\) instead of \(3,\)",
    ):
        load_tiny(save(tmp_path / "3d-vae.pt", state))


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"):
        load_tiny(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.fill_(float("nan")), r"3d-vae\.pt holds NaN or infinity in 1 tensors of the VAE: decoder"),
        (lambda value: value.to(torch.int32), r"3d-vae\.pt stores 1 tensors of the VAE as int32: decoder\.conv_out"),
    ],
)
def test_weights_that_are_no_numbers_are_named(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    state = tiny_vae().state_dict()
    state["decoder.conv_out.conv.bias"] = change(state["decoder.conv_out.conv.bias"].clone())
    with pytest.raises(CheckpointError, match=message):
        load_tiny(save(tmp_path / "3d-vae.pt", state))
