"""What the model does to a clip, and the sizes and frame counts that it therefore takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cogvideox.config.findings import Reporter
from cogvideox.config.signatures import read_signature
from cogvideox.geometry import Geometry
from cogvideox.released import V1_0

RESIZE = "model.network_config.params.modules.pos_embed_config.params.resize"
ROTARY = "cogvideox.transformer.positions.RotaryPositionMixin"
SINCOS = "cogvideox.transformer.positions.SinCosPositionMixin"


@dataclass(frozen=True)
class ClipSizes:
    """How pixels become tokens, and the largest clip that has positions.

    largest: (height, width) in pixels, longest: pixel frames; None where there is no limit or no network.
    """

    geometry: Geometry
    largest: tuple[int, int] | None
    longest: int | None

    def check_size(self, path: str, size: tuple[int, int], findings: Reporter) -> None:
        """`size` is (height, width) in pixels."""
        problem = self.geometry.size_problem(size)
        if problem:
            findings.error(path, f"[height, width] {problem}")
        elif self.largest and any(side > most for side, most in zip(size, self.largest, strict=True)):
            text = (
                f"{list(size)} is larger than the network's positions, which end at {list(self.largest)}; "
                f"{RESIZE}=interpolate stretches them"
            )
            findings.error(path, text)

    def check_frames(self, path: str, frames: int, findings: Reporter) -> None:
        """`frames` are pixel frames."""
        problem = self.geometry.frames_problem(frames)
        if problem:
            findings.error(path, problem)
        elif self.longest is not None and frames > self.longest:
            findings.error(path, f"{frames} pixel frames are more than the network's positions cover: {self.longest}")

    def check_latent_frames(self, path: str, frames: int, findings: Reporter) -> None:
        """`frames` are latent frames; with patches of 2 an even number counts the padding."""
        real = self.geometry.real_frames(frames)
        least = self.geometry.least_latent_frames
        if real < least:
            why = f": patches hold 2 latent frames (3 or 4 give {self.geometry.pixel_frames(3)} pixel frames)"
            findings.error(path, f"must be at least {least}, not {frames}{why if least > 1 else ''}")
            return
        pixels = self.geometry.pixel_frames(real)
        if self.longest is not None and pixels > self.longest:
            text = f"{frames} latent frames are {pixels} pixel frames, more than the network's positions cover"
            findings.error(path, f"{text}: {self.longest}")


def read_sizes(network: dict[str, Any], vae: dict[str, Any]) -> ClipSizes:
    """From the parameters of both nodes; {} stands for a component that is not given."""
    spatial = 2 ** (len(vae.get("ch_mult", (1, 2, 2, 4))) - 1)
    geometry = Geometry(vae.get("temporal_compression", 4), spatial, patch_triple(network))
    grid = (
        network.get("latent_height", V1_0.latent_height) * spatial,
        network.get("latent_width", V1_0.latent_width) * spatial,
    )
    any_size = (positions(network).get("params") or {}).get("resize") == "interpolate"
    return ClipSizes(
        geometry=geometry,
        largest=grid if network and not any_size else None,
        longest=_longest(network, geometry) if network else None,
    )


def latent_channels(vae: Mapping[str, Any]) -> int:
    """Channels of a latent. vae: its node."""
    return int({**read_signature(vae["target"]).defaults, **vae["params"]}["z_channels"])


def positions(network: dict[str, Any]) -> dict[str, Any]:
    """The position mixin's node, {} when there is none."""
    return (network.get("modules") or {}).get("pos_embed_config") or {}


def patch_triple(network: dict[str, Any]) -> tuple[int, int, int]:
    """(frames, height, width). One number is both sides; what is neither that nor a triple is reported elsewhere."""
    patch = network.get("patch_size", 2)
    if isinstance(patch, Sequence):
        return (patch[0], patch[1], patch[2]) if len(patch) == 3 else (1, 2, 2)
    return (1, patch, patch)


def _longest(network: dict[str, Any], geometry: Geometry) -> int:
    """Pixel frames of the longest clip. Rotary tables hold a row for each latent frame, so that patches of 2
    reach twice as far: 81 frames are 21 rows, which 161 frames (42 padded latents) fill.
    """
    latents = geometry.latent_frames(network.get("num_frames", V1_0.clip.frames))
    node = positions(network)
    rotary_only = node.get("target") == ROTARY and not (node.get("params") or {}).get("learnable_pos_embed")
    rows = latents if rotary_only else geometry.token_grid(latents, 0, 0)[0]
    return geometry.pixel_frames(geometry.real_frames(rows * geometry.patch_size[0]))
