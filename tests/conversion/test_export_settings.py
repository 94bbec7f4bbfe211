"""Without a YAML a released model's settings are known, and nobody else's."""

from __future__ import annotations

import pytest
from cogvideox.conversion.diffusers_export.options import parse_options
from cogvideox.conversion.diffusers_export.settings import check_claims, read_settings
from cogvideox.conversion.yaml_facts import YamlFacts
from cogvideox.errors import ConfigError
from cogvideox.weights.families import read_facts
from torch import Size
from weights.test_key_rules import PUBLISHED, published_shapes

OPTIONS = parse_options(["--checkpoint", "weights", "--output_path", "out"])
NOTHING = YamlFacts(None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_models_need_no_yaml(name: str) -> None:
    settings = read_settings(NOTHING, read_facts(published_shapes(name)), OPTIONS)
    newer, image = "1.5" in name, "I2V" in name
    assert (settings.num_frames, settings.text_length) == ((81, 224) if newer else (49, 226))
    assert (settings.latent_height, settings.latent_width) == ((300, 300) if newer else (60, 90))
    assert (settings.scale_factor, settings.shift_scale) == ((1.15258426, 3.0) if "2B" in name else (0.7, 1.0))
    assert settings.image_latent_scale == ((1.0 if newer else 0.7) if image else None)
    assert settings.invert_scale_latents == newer
    assert settings.pipeline_image_scale == pytest.approx(1 / 0.7 if newer else settings.scale_factor)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("CogVideoX-2B", {"mixins.pos_embed.pos_embedding": (1, 12376, 1920)}),
        ("CogVideoX-5B-I2V", {"mixins.pos_embed.pos_embedding": (1, 12376, 3072)}),
        ("CogVideoX-5B", {"transformer.layers.42.input_layernorm.weight": (3072,)}),
    ],
)
def test_others_do(name: str, change: dict[str, tuple[int, ...]]) -> None:
    shapes = published_shapes(name) | {key: Size(shape) for key, shape in change.items()}
    with pytest.raises(ConfigError, match="which sizes it was trained at, no tensor says: give its YAML with --base"):
        read_settings(NOTHING, read_facts(shapes), OPTIONS)


@pytest.mark.parametrize(
    ("flags", "scale", "inverts"),
    [
        ("--scaling_factor 0.7", 0.7, False),
        ("--scaling_factor 1.15258426 --version 1.0 --snr_shift_scale 3.0", 1.15258426, False),
        ("--scaling_factor 0.7 --version 1.0 --snr_shift_scale 2.0 --i2v", 0.7, False),
        ("--scaling_factor 0.7 --version 1.5", 0.7, True),
        ("--scaling_factor 0.5 --version 1.5", 0.5, True),
        ("--version 1.5", 0.7, True),
    ],
)
def test_vae_alone_takes_the_old_flags(flags: str, scale: float, inverts: bool) -> None:
    options = parse_options(["--vae_ckpt_path", "vae", "--output_path", "out", *flags.split()])
    settings = read_settings(NOTHING, None, options)
    check_claims(options, None, settings)
    assert (settings.scale_factor, settings.invert_scale_latents) == (scale, inverts)


@pytest.mark.parametrize("flags", ["", "--version 1.0"])
def test_vae_alone_of_nobody_knows_which_model(flags: str) -> None:
    options = parse_options(["--vae", "vae", "--output_path", "out", *flags.split()])
    with pytest.raises(ConfigError, match=r"no tensor of a VAE says which scale .* give --base .*or --scaling_factor"):
        read_settings(NOTHING, None, options)
