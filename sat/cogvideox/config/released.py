"""What the released models were trained for: the sampling defaults of 1.5, and frame rates that don't fit a model.

1.5 is told from 1.0 by its patches, which hold two latent frames. Frame rates are questioned only where the network has
the width of a released model: a model of another size was trained by someone else, at a rate that is theirs to know.
"""

from __future__ import annotations

from typing import Any

from cogvideox.config.clip_sizes import patch_triple
from cogvideox.config.findings import Findings
from cogvideox.config.report import Origin, Report
from cogvideox.config.schema import Config, SampleArgs
from cogvideox.config.tree import Node, build, find, put

_PATCH = "model.network_config.params.patch_size"
# Frames per second of training.
_RATES = {"1.0": 8, "1.5": 16}
_WIDTHS = {"1.0": (1920, 3072), "1.5": (3072,)}
# (height, width) in pixels, latent frames with the added one (81 pixel frames), frames per second.
_SAMPLING_1_5: dict[str, Any] = {
    "sampling_image_size": [768, 1360],
    "sampling_num_frames": 22,
    "sampling_fps": _RATES["1.5"],
}


def has_deep_patches(root: Node) -> bool:
    """Whether the network's patches hold two latent frames, as in 1.5."""
    patch = find(root, _PATCH)
    patches = patch.plain() if patch is not None else None
    return isinstance(patches, list) and patches[:1] == [2]


def released_sampling(patch_frames: int) -> dict[str, Any]:
    """Size, latent frames and rate that a generation samples at, told by the latent frames of its patches."""
    if patch_frames > 1:
        return dict(_SAMPLING_1_5)
    standard = SampleArgs()
    size = standard.sampling_image_size
    return {
        "sampling_image_size": None if size is None else list(size),
        "sampling_num_frames": standard.sampling_num_frames,
        "sampling_fps": standard.sampling_fps,
    }


def settle_sampling_defaults(root: Node, report: Report) -> None:
    """Sizes and rate of 1.5 where no file says them; 1.0 has those of the schema. Image-to-video: as the image is."""
    if not has_deep_patches(root):
        return
    image = find(root, "model.noised_image_input")
    from_image = image is not None and image.value is True
    said = []
    for key, value in _SAMPLING_1_5.items():
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
    version = "1.5" if patch_triple(network)[0] == 2 else "1.0"
    other = "1.0" if version == "1.5" else "1.5"
    trains = config.kind == "train"
    path = "data.fps" if trains else "args.sampling_fps"
    if findings.partial and find(findings.root, path) is None:
        return  # a default says nothing
    if trains:
        rate = None if config.data is None else config.data.fps
    else:
        rate = config.sample_args.sampling_fps
    if network.get("hidden_size") not in _WIDTHS[version] or rate is None or rate != _RATES[other]:
        return
    what = "clips move" if trains else "videos play"
    twice = (rate < _RATES[version]) is trains  # fewer frames per second: more motion from one to the next
    speed = "at twice the speed" if twice else "at half the speed"
    text = f"CogVideoX {version} was trained at {_RATES[version]} frames per second; at {rate:g} {what} {speed}"
    files = {"1.0": ("sft.yaml", "inference.yaml"), "1.5": ("sft_1.5.yaml", "inference_1.5.yaml")}
    findings.warn(path, f"{text}: set {_RATES[version]}, as configs/{files[version][0 if trains else 1]} does")
