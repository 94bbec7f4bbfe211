"""What the families differ in, at tiny size: padded frames (1.5) and the image (I2V)."""

from __future__ import annotations

import pytest
import tiny
import torch
from cogvideox.errors import ConfigError, ShapeError
from cogvideox.model.image_condition import ImageCondition
from cogvideox.model.video_diffusion import VideoDiffusion
from model.parts import CAPTIONS, batch, build, cut

FAMILIES = ("2b", "5b", "5b_i2v", "1.5", "1.5_i2v")
IMAGE_SCALE = {"5b_i2v": 0.7, "1.5_i2v": 1.0}
SIZE = (tiny.HEIGHT, tiny.WIDTH)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


@pytest.fixture(scope="module")
def models(paths: tiny.TinyFamily) -> dict[str, VideoDiffusion]:
    return {family: build(paths, family=family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(models: dict[str, VideoDiffusion], family: str) -> VideoDiffusion:
    return models[family].train()


def test_the_loss_with_every_formula_written_out(model: VideoDiffusion, family: str) -> None:
    rows = batch()
    randomness = model.draw(rows.rows)
    scale = 1.15258426 if family == "2b" else 0.7
    with torch.no_grad():
        video = (rows.video.float() - 127.5) / 127.5
        posterior = model.vae.encode(video)
        latent = scale * (posterior.mean + posterior.std * randomness.posterior_noise)
        if family.startswith("1.5"):
            latent = torch.cat([latent[:, :1], latent], dim=1)
        context = model.conditioner.encoder(CAPTIONS) * randomness.keep_caption[:, None, None]
        a = model.schedule.sqrt_alpha_bar[randomness.timestep][:, None, None, None, None]
        noised = a * latent + (1 - a**2).sqrt() * randomness.noise
        channels = noised
        if family in IMAGE_SCALE:
            image = randomness.image
            assert image is not None
            frame = video[:, 0] + image.sigma[:, None, None, None] * image.pixel_noise
            encoded = model.vae.encode(frame[:, None])
            beside = torch.zeros_like(latent)
            beside[:, 0] = (IMAGE_SCALE[family] * (encoded.mean + encoded.std * image.posterior_noise))[:, 0]
            channels = torch.cat([noised, beside * image.keep[:, None, None, None, None]], dim=2)
        v = model.transformer(channels, randomness.timestep, context)
        expected = ((v - (a * randomness.noise - (1 - a**2).sqrt() * latent)) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(model(rows), expected, rtol=1e-5, atol=1e-5)


def test_everything_that_trains_gets_a_gradient(model: VideoDiffusion) -> None:
    loss = model(batch())
    assert loss.shape == (3,) and loss.dtype == torch.float32
    loss.mean().backward()
    for name, parameter in model.transformer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    model.zero_grad()


def test_losses_do_not_depend_on_the_batch_split(model: VideoDiffusion) -> None:
    with torch.no_grad():
        whole = model(batch())
        parts = torch.cat([model(batch(rows)) for rows in (slice(0, 1), slice(1, 3))])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_what_is_sampled_decodes_to_as_many_frames_as_went_in(model: VideoDiffusion, family: str) -> None:
    frames = model.num_latent_frames(tiny.FRAMES)
    shape = model.latent_shape(frames, *SIZE)
    assert (frames, shape[0]) == ((3, 4) if family.startswith("1.5") else (3, 3))
    latent = torch.randn(2, *shape)
    video = model.decode(latent)
    assert video.shape == (2, tiny.FRAMES, 3, *SIZE)
    torch.testing.assert_close(torch.cat(list(model.decode_chunks(latent)), dim=1), video)
    assert model.unpad(latent).shape[1] == 3 and torch.equal(model.unpad(latent)[:, -1], latent[:, -1])


def test_evaluation_draws_the_same_each_time_and_drops_nothing(model: VideoDiffusion, family: str) -> None:
    model.eval()
    one, two = model.draw_fixed(batch(epoch=0).rows, seed=5), model.draw_fixed(batch(epoch=3).rows, seed=5)
    assert torch.equal(one.noise, two.noise) and one.keep_caption.all()
    assert (one.image is not None) == (family in IMAGE_SCALE)
    if one.image is not None and two.image is not None:
        assert torch.equal(one.image.pixel_noise, two.image.pixel_noise) and one.image.keep.all()
    with torch.no_grad():
        assert torch.equal(model(batch(), one), model(batch(), two))


@pytest.mark.parametrize("name", ["1.5", "1.5_i2v"])
def test_clips_that_do_not_fill_patches_are_refused(models: dict[str, VideoDiffusion], name: str) -> None:
    rows = batch()
    with pytest.raises(ShapeError, match=r"a clip of 2 latent frames .* patches hold 2 .*; nearest: 3"):
        models[name](cut(rows, 5))
    with pytest.raises(ShapeError, match=r"a clip of 1 latent frames .* patches hold 2"):
        models[name](cut(rows, 1))


@pytest.mark.parametrize("name", ["2b", "5b", "5b_i2v"])
def test_single_frames_train_where_patches_are_one_frame(models: dict[str, VideoDiffusion], name: str) -> None:
    rows = batch()
    loss = models[name](cut(rows, 1))
    assert loss.shape == (3,) and (loss > 0).all()


@pytest.mark.parametrize("name", IMAGE_SCALE)
def test_image_latent_stands_first_and_zeros_behind(models: dict[str, VideoDiffusion], name: str) -> None:
    model, image = models[name], batch().video[:, 0]
    posterior = model.vae.encode(((image.float() - 127.5) / 127.5)[:, None])
    noise = torch.randn_like(posterior.mean)
    for given, expected in ((None, posterior.mean), (noise, posterior.sample(noise))):
        latent = model.image_latent(image, 3, given)
        assert latent.shape == (3, *model.latent_shape(3, *SIZE)) and latent.dtype == torch.float32
        torch.testing.assert_close(latent[:, :1], IMAGE_SCALE[name] * expected)
        assert not latent[:, 1:].any()
    assert (3 if name == "5b_i2v" else 4) == latent.shape[1]
    with pytest.raises(AssertionError, match="images stay uint8"):
        model.image_latent(image.float(), 3)


@pytest.mark.parametrize("name", IMAGE_SCALE)
def test_dropped_images_are_zeros_for_their_sample_only(paths: tiny.TinyFamily, name: str) -> None:
    model = build(paths, family=name, noised_image_dropout=0.5)
    seen: list[torch.Tensor] = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0, 16:]))
    epoch = next(e for e in range(20) if 0 < int(model.draw(batch(epoch=e).rows).image.keep.sum()) < 3)  # type: ignore[union-attr]
    keep = model.draw(batch(epoch=epoch).rows).image.keep  # type: ignore[union-attr]
    with torch.no_grad():
        model(batch(epoch=epoch))
        model.eval()(batch(epoch=epoch))
    assert seen[0].flatten(1).any(1).tolist() == keep.tolist()
    assert seen[1].flatten(1).any(1).all()
    kept = int(keep.nonzero()[0])
    assert torch.equal(seen[0][kept], seen[1][kept])  # dropping changes nothing else


def test_denoise_sees_the_image(models: dict[str, VideoDiffusion]) -> None:
    model = models["1.5_i2v"]
    noised, timestep = torch.randn(2, *model.latent_shape(3, *SIZE)), torch.tensor([999, 300])
    context = model.encode_text(CAPTIONS[:2])
    image_latent = model.image_latent(batch().video[:2, 0], 3)
    with torch.no_grad():
        clean = model.denoise(noised, timestep, context, image_latent=image_latent)
        other = model.denoise(noised, timestep, context, image_latent=torch.zeros_like(image_latent))
        v = model.transformer(torch.cat([noised, image_latent], dim=2), timestep, context)
    a = model.schedule.sqrt_alpha_bar[timestep][:, None, None, None, None]
    torch.testing.assert_close(clean, a * noised - (1 - a**2).sqrt() * v, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(clean, other)
    with pytest.raises(AssertionError, match="only they, need an image"):
        model.denoise(noised, timestep, context)
    with pytest.raises(AssertionError, match="only they, need an image"):
        models["1.5"].denoise(noised, timestep, context, image_latent=image_latent)


def test_image_conditions_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"image_latent_scale is 0, must be above 0 or null"):
        ImageCondition(0.0)
    with pytest.raises(ConfigError, match=r"noised_image_dropout is 1.5, must be between 0 and 1"):
        ImageCondition(1.0, 1.5)


@pytest.mark.parametrize("name", ["5b_i2v", "1.5", "1.5_i2v"])
def test_overfitting_one_batch(paths: tiny.TinyFamily, name: str) -> None:
    """The same latents, timesteps and noise over and over: the network learns them."""
    model, rows = build(paths, family=name), batch()
    randomness = model.draw(rows.rows)
    latent, context = model.encode_video(rows.video), model.encode_text(rows.rows.captions)
    image_latent = model.image_latent(rows.video[:, 0], 3) if model.image else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = model.loss_of(latent, context, randomness, image_latent).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0], losses
