"""How large the video of an image is, when the configuration gives no size. No torch here: `--check` asks too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cogvideox.config.clip_sizes import read_sizes
from cogvideox.config.schema import ModelConfig
from cogvideox.data.images import read_image
from cogvideox.data.media import Media
from cogvideox.errors import DataError
from cogvideox.geometry import Geometry
from cogvideox.released import V1_0, V1_5
from cogvideox.sampling.prompts import Prompt

# CogVideoX1.5's table of positions reaches 2400 pixels, but its clips had this short side (768).
_TRAINED_SHORT_SIDE = min(V1_5.clip.height, V1_5.clip.width)


@dataclass(frozen=True)
class SizeRule:
    """The short side is the family's, the long side follows the image's proportions.

    short_side: pixels. geometry: says which sizes are legal. largest: where the positions end (height,
    width), None when they don't.
    """

    short_side: int
    geometry: Geometry
    largest: tuple[int, int] | None

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the video of an image of height x width, to the nearest legal multiple.

        Raises: DataError when the positions end before that.
        """
        scale = self.short_side / min(height, width)
        wanted = self.geometry.nearest_size((height * scale, width * scale))
        if self.largest is not None and any(side > most for side, most in zip(wanted, self.largest, strict=True)):
            cropped = [min(side, most) for side, most in zip(wanted, self.largest, strict=True)]
            raise DataError(
                f"an image of {height} x {width} (height x width) makes a video of {wanted[0]} x {wanted[1]}, but the "
                f"network's positions end at {self.largest[0]} x {self.largest[1]}: "
                f"args.sampling_image_size=[{cropped[0]},{cropped[1]}] crops it"
            )
        return wanted


def size_rule(model: ModelConfig) -> SizeRule:
    """The rule of a family: the short side that its network is configured for, at most 768 pixels (1.5 has positions
    far beyond its training sizes): 480 for 1.0 and 768 for 1.5."""
    network = model.network_config["params"]
    sizes = read_sizes(network, model.first_stage_config["params"])
    configured = min(network.get("latent_height", V1_0.latent_height), network.get("latent_width", V1_0.latent_width))
    short_side = min(configured * sizes.geometry.spatial_compression, _TRAINED_SHORT_SIDE)
    return SizeRule(short_side, sizes.geometry, sizes.largest)


def check_images(prompts: Sequence[Prompt], rule: SizeRule | None = None) -> list[tuple[int, int]] | None:
    """Read every image once, before anything is loaded. With a rule: (height, width) of each prompt's videos.

    Raises: DataError that names the prompt's line.
    """
    found: dict[Path, tuple[int, int]] = {}
    sizes = []
    for prompt in prompts:
        assert prompt.image is not None, "prompts of an image-to-video model"
        try:
            if prompt.image not in found:
                height, width, _ = read_image(Media(str(prompt.image))).shape
                found[prompt.image] = (height, width)
            if rule is not None:
                sizes.append(rule.size_for(*found[prompt.image]))
        except DataError as error:
            raise DataError(f"{prompt.place}: {error}") from error
    return None if rule is None else sizes
