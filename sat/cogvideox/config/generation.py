"""What depends on a model's generation: the sampling defaults of 1.5, and frame rates that don't fit a model.

1.5 differs from 1.0 in its patches, which hold two latent frames. Frame rates are questioned only where the network has
the width of a released model: a model of another size was trained by someone else, at a rate that is theirs to know.
"""

from __future__ import annotations

from typing import Any

from cogvideox.config.clip_sizes import patch_triple
from cogvideox.config.findings import Findings
from cogvideox.config.report import Origin, Report
from cogvideox.config.schema import Config
from cogvideox.config.tree import Node, build, find, put
from cogvideox.released import FAMILIES, V1_0, V1_5, generation_of

_PATCH = "model.network_config.params.patch_size"


def has_deep_patches(root: Node) -> bool:
    """Whether the network's patches hold two latent frames, as in 1.5."""
    patch = find(root, _PATCH)
    patches = patch.plain() if patch is not None else None
    return isinstance(patches, list) and patches[:1] == [V1_5.frames_per_patch]


def released_sampling(patch_frames: int) -> dict[str, Any]:
    """The keys of `args` for the size, latent frames and rate that a generation samples at.

    Args:
        patch_frames: latent frames in its patches.
    """
    generation = generation_of(patch_frames)
    return {
        "sampling_image_size": [generation.clip.height, generation.clip.width],
        "sampling_num_frames": generation.sampling_num_frames,
        "sampling_fps": round(generation.clip.fps),
    }


def settle_sampling_defaults(root: Node, report: Report) -> None:
    """Sizes and rate of 1.5 where no file says them; 1.0 has those of the schema. Image-to-video: as the image is."""
    if not has_deep_patches(root):
        return
    image = find(root, "model.noised_image_input")
    from_image = image is not None and image.value is True
    said = []
    for key, value in released_sampling(V1_5.frames_per_patch).items():
        path = f"args.{key}"
        if find(root, path) is not None:
            continue
        by_image = from_image and key == "sampling_image_size"
        put(root, path, build(None if by_image else value, Origin("", None, path)))
        said.append(f"{path} {'null (from the image)' if by_image else value}")
    if said:
        report.notice(f"not given, so as CogVideoX 1.5 was trained: {', '.join(said)}")


def check_frame_rate(config: Config, network: dict[str, Any], findings: Findings) -> None:
    """A rate of the other generation, which makes videos too fast or too slow.

    Args:
        network: its parameters.
    """
    own = generation_of(patch_triple(network)[0])
    other = V1_0 if own is V1_5 else V1_5
    trains = config.kind == "train"
    path = "data.fps" if trains else "args.sampling_fps"
    if findings.partial and find(findings.root, path) is None:
        return  # a default says nothing
    if trains:
        rate = None if config.data is None else config.data.fps
    else:
        rate = config.sample_args.sampling_fps
    widths = {family.hidden_size for family in FAMILIES if family.generation is own}
    if network.get("hidden_size") not in widths or rate is None or rate != other.clip.fps:
        return
    what = "clips move" if trains else "videos play"
    twice = (rate < own.clip.fps) is trains  # fewer frames per second: more motion from one to the next
    speed = "at twice the speed" if twice else "at half the speed"
    text = f"CogVideoX {own.version} was trained at {own.clip.fps:g} frames per second; at {rate:g} {what} {speed}"
    file = own.training_yaml if trains else own.sampling_yaml(image_input=False)
    findings.warn(path, f"{text}: set {own.clip.fps:g}, as {file} does")
