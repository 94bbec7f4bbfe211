"""Without a YAML a released model's settings are known, and nobody else's."""

from __future__ import annotations

import pytest
from cogvideox.errors import ConfigError
from cogvideox.weights.families import read_facts
from diffusers_export.options import parse_options
from diffusers_export.yaml_facts import YamlFacts, read_settings
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
