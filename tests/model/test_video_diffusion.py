"""The whole model at tiny size: what is registered, what the loss depends on, where gradients go."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from cogvideox.data.rows import Drawing
from cogvideox.diffusion import denoiser
from cogvideox.errors import ShapeError
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.vae.pieces import to_signed
from model.parts import CAPTIONS, batch, build
from torch.utils._python_dispatch import TorchDispatchMode

LATENT_SHAPE = (3, 16, 4, 6)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


@pytest.fixture(scope="module")
def model(family: tiny.TinyFamily) -> VideoDiffusion:
    return build(family)


def test_only_the_transformer_is_registered(model: VideoDiffusion) -> None:
    assert [name for name, _ in model.named_children()] == ["model"]
    assert all(name.startswith("model.diffusion_model.") for name in model.state_dict())
    assert set(map(id, model.parameters())) == set(map(id, model.transformer.parameters()))
    assert not any(p.requires_grad for part in (model.vae, model.conditioner) for p in part.parameters())


def test_forward_gives_one_fp32_loss_per_sample_and_gradients_to_the_transformer_only(model: VideoDiffusion) -> None:
    loss = model(batch())
    assert loss.shape == (3,) and loss.dtype == torch.float32 and (loss > 0).all()
    loss.mean().backward()
    for name, parameter in model.transformer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(p.grad is None for part in (model.vae, model.conditioner) for p in part.parameters())
    model.zero_grad()


def test_forward_is_the_sum_of_its_parts(model: VideoDiffusion) -> None:
    """Step by step, with the formulas written out."""
    rows = batch()
    randomness = model.draw(rows.rows)
    with torch.no_grad():
        posterior = model.vae.encode((rows.video.float() - 127.5) / 127.5)
        latent = 1.15258426 * (posterior.mean + posterior.std * randomness.posterior_noise)
        context = model.conditioner.encoder(CAPTIONS) * randomness.keep_caption[:, None, None]
        a = model.schedule.sqrt_alpha_bar[randomness.timestep][:, None, None, None, None]
        noised = a * latent + (1 - a**2).sqrt() * randomness.noise
        predicted = a * noised - (1 - a**2).sqrt() * model.transformer(noised, randomness.timestep, context)
        expected = ((predicted - latent) ** 2 / (1 - a**2)).flatten(1).mean(1)
        torch.testing.assert_close(model(rows, randomness), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", [(slice(0, 2), slice(2, 3)), (slice(0, 1), slice(1, 2), slice(2, 3))])
@pytest.mark.parametrize("stratified", [False, True])
def test_losses_do_not_depend_on_the_batch_split(
    model: VideoDiffusion, split: tuple[slice, ...], stratified: bool
) -> None:
    model.loss.stratified_timesteps = stratified
    with torch.no_grad():
        whole = model(batch())
        parts = torch.cat([model(batch(rows)) for rows in split])
    model.loss.stratified_timesteps = False
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_epochs_change_the_loss_and_the_torch_seed_does_not(model: VideoDiffusion) -> None:
    with torch.no_grad():
        torch.manual_seed(0)
        first = model(batch())
        torch.manual_seed(1)
        assert torch.equal(model(batch()), first)
        assert not torch.equal(model(batch(epoch=1)), first)


def test_captions_are_dropped_in_training_only(family: tiny.TinyFamily) -> None:
    model = build(family)
    model.conditioner.caption_dropout = 1.0
    assert not model.train().draw(batch().rows).keep_caption.any()
    assert model.eval().draw(batch().rows).keep_caption.all()


def test_draws_in_a_thread_state_the_mode(family: tiny.TinyFamily) -> None:
    """Training's draws go on while the model is in evaluation mode."""
    model = build(family)
    model.conditioner.caption_dropout = 1.0
    assert not model.eval().draw(batch().rows, training=True).keep_caption.any()
    assert model.train().draw(batch().rows, training=False).keep_caption.all()


@pytest.mark.parametrize("stratified", [False, True])
def test_noise_that_was_drawn_beside_gives_the_same_losses(family: tiny.TinyFamily, stratified: bool) -> None:
    """To the bit, in either mode of the model at the time of the draw."""
    model = build(family).train()
    model.loss.stratified_timesteps = stratified
    with torch.no_grad():
        expected = model(batch(epoch=2))
        model.eval()
        drawing = Drawing(lambda rows: model.draw(rows, training=True))
        ahead = drawing.begin(batch(epoch=2))
        ahead.randomness.result()
        drawing.close()
        assert torch.equal(model.train()(ahead), expected)


def test_frozen_parts_stay_in_evaluation_mode(model: VideoDiffusion) -> None:
    model.train()
    assert not model.conditioner.encoder.training and not model.vae.training


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_encoding_and_decoding_some_samples_at_a_time_changes_nothing(family: tiny.TinyFamily, at_a_time: int) -> None:
    whole, pieces = build(family), build(family, en_and_decode_n_samples_a_time=at_a_time)
    latent = whole.encode_video(batch().video)
    torch.testing.assert_close(pieces.encode_video(batch().video), latent, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pieces.decode(latent), whole.decode(latent), rtol=1e-4, atol=1e-4)


def test_encode_video_scales_and_samples(model: VideoDiffusion) -> None:
    video = batch().video
    posterior = model.vae.encode(to_signed(video))
    noise = torch.randn_like(posterior.mean)
    torch.testing.assert_close(model.encode_video(video), 1.15258426 * posterior.mean)
    torch.testing.assert_close(model.encode_video(video, noise), 1.15258426 * posterior.sample(noise))
    with pytest.raises(AssertionError, match="clips stay uint8"):
        model.encode_video(video.float())


def test_denoise_turns_v_into_a_clean_latent(model: VideoDiffusion) -> None:
    noised, timestep = torch.randn(2, *LATENT_SHAPE), torch.tensor([999, 300])
    context = model.encode_text(CAPTIONS[:2])
    with torch.no_grad():
        v = model.transformer(noised, timestep, context)
        table = model.schedule.level(timestep)
        assert torch.equal(model.denoise(noised, timestep, context), denoiser.to_clean(noised, v, table))
        other = torch.tensor([0.0, 0.5])
        assert torch.equal(model.denoise(noised, timestep, context, other), denoiser.to_clean(noised, v, other))


def test_decode_undoes_the_scale(model: VideoDiffusion) -> None:
    latent = torch.randn(2, *LATENT_SHAPE)
    video = model.decode(latent)
    assert video.shape == (2, tiny.FRAMES, 3, tiny.HEIGHT, tiny.WIDTH)
    torch.testing.assert_close(video, model.vae.decode(latent / 1.15258426))
    torch.testing.assert_close(torch.cat(list(model.decode_chunks(latent)), dim=1), video)
    assert model.latent_shape(3, tiny.HEIGHT, tiny.WIDTH) == LATENT_SHAPE


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_clips_come_back_with_the_frames_that_they_have(model: VideoDiffusion, frames: int) -> None:
    """5 and 13 frames are an even number of latents."""
    clip = torch.randint(256, (1, frames, 3, tiny.HEIGHT, tiny.WIDTH), dtype=torch.uint8)
    latent = model.encode_video(clip)
    assert latent.shape[1] == model.num_latent_frames(frames)
    assert model.decode(latent).shape == clip.shape
    assert sum(chunk.shape[1] for chunk in model.decode_chunks(latent)) == frames


def test_bf16_parts_still_give_an_fp32_loss_near_the_exact_one(family: tiny.TinyFamily, tmp_path: Path) -> None:
    exact, low = build(family), build(family)
    low.transformer.bfloat16()
    low.vae.to(torch.bfloat16)
    low.conditioner.move("cpu", torch.bfloat16)
    with torch.no_grad():
        loss = low(batch())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact(batch()), rtol=0.1, atol=0.05)


class HostSyncs(TorchDispatchMode):
    """Collects the operations that make the host wait for a device."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if any(name in str(func) for name in self.NAMES):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(model: VideoDiffusion) -> None:
    with HostSyncs() as syncs:
        model.train()(batch()).mean().backward()
    model.zero_grad()
    assert not syncs.found
    with HostSyncs() as syncs:
        assert torch.ones(1).item() == 1.0  # what the check would find
    assert syncs.found


def test_illegal_clips_are_refused(model: VideoDiffusion) -> None:
    rows = batch()
    with pytest.raises(ShapeError, match=r"clip of 8 frames .* nearest: 5 or 9"):
        model.encode_video(rows.video[:, :8])
