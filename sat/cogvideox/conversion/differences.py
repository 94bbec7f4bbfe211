"""What diffusers' pipelines compute otherwise than the trained model, because no key of their configs says it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from cogvideox.conversion.yaml_facts import YamlFacts
from cogvideox.errors import ConfigError
from cogvideox.weights.diffusers_folder import SAME_SCALE, PipelineSettings
from cogvideox.weights.families import TransformerFacts
from cogvideox.weights.transformer_map import PATCH_WEIGHTS

OFS = 2.0  # what diffusers' image-to-video pipeline passes


def differences(
    yaml: YamlFacts, facts: TransformerFacts, settings: PipelineSettings, *, folded: bool
) -> tuple[str, ...]:
    """One line for each, for the user."""
    return tuple(_differences(yaml, facts, settings, folded))


def _differences(yaml: YamlFacts, facts: TransformerFacts, settings: PipelineSettings, folded: bool) -> Iterator[str]:
    size = f"{settings.latent_height * 8} x {settings.latent_width * 8}"
    if has_other_image_scale(settings):
        what = f"diffusers' pipeline multiplies the image latent by {settings.pipeline_image_scale:.6g}, the model was "
        what += f"trained with image_latent_scale {settings.image_latent_scale:.6g}"
        remedy = "--fold_image_scale makes up for it in the patch projection"
        if folded:
            remedy = "the patch projection makes up for it (--fold_image_scale)"
        yield f"{what}; {remedy}"
    if facts.ofs_embed_dim is not None and yaml.network.get("ofs", OFS) != OFS:
        yield f"diffusers' pipeline always passes ofs {OFS:g}, the model was trained with {yaml.network['ofs']:g}"
    if facts.learned_table:
        yield (
            f"diffusers uses the learned positions at {settings.num_frames} frames of {size} only: it refuses other "
            "sizes, and forgets the table at other frame counts"
        )
    elif facts.rotary and facts.patch_size[0] == 1 and yaml.module("pos_embed_config").get("resize") != "interpolate":
        yield f"at other sizes than {size} diffusers interpolates rotary positions, the model slices them"
    if facts.patch_size[0] > 1:
        yield f"give the pipeline height and width: without, it makes {size} (the size of the position table)"


def has_other_image_scale(settings: PipelineSettings) -> bool:
    """Whether diffusers' pipeline can't scale the image latent as in training."""
    scale = settings.image_latent_scale
    return scale is not None and not math.isclose(scale, settings.pipeline_image_scale, rel_tol=SAME_SCALE)


def check_folding(asked: bool, facts: TransformerFacts | None) -> None:
    """Raises: ConfigError when --fold_image_scale makes no sense."""
    if asked and (facts is None or facts.in_channels == facts.out_channels):
        what = facts.summary if facts is not None else "no transformer"
        raise ConfigError(f"--fold_image_scale is for image-to-video models, and this is {what}: leave it out")


class FoldedImageScale(Mapping[str, Tensor]):
    """A transformer (plain relative SAT names) for an image latent of diffusers' scale instead of training's.

    Only the columns of the patch projection that the image latent meets are changed: multiplied, in fp32, by the ratio.
    """

    def __init__(self, state: Mapping[str, Tensor], facts: TransformerFacts, settings: PipelineSettings) -> None:
        assert settings.image_latent_scale is not None, "an image-to-video model has a scale"
        self._state = state
        self._facts = facts
        self._ratio = settings.image_latent_scale / settings.pipeline_image_scale

    def __getitem__(self, name: str) -> Tensor:
        value = self._state[name]
        if name not in PATCH_WEIGHTS:
            return value
        scaled = value.float().reshape(len(value), self._facts.in_channels, -1).clone()
        scaled[:, self._facts.out_channels :] *= self._ratio
        return scaled.reshape(value.shape).to(value.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
