"""What must agree between the sections: sizes of the clip, the network, the VAE and the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cogvideox.config.limits import frame_count_problem, size_problem
from cogvideox.config.report import Origin, Report, suggestion
from cogvideox.config.schema import DataConfig, ModelConfig, SampleArgs, TrainArgs
from cogvideox.config.tree import Node, find

_NETWORK = "model.network_config.params"
_VAE = "model.first_stage_config.params"
_MAY_BE_ZERO = ("num_res_blocks",)
# Entries of the network's `modules`; all but the last must be there.
NETWORK_SLOTS = ("pos_embed_config", "patch_embed_config", "adaln_layer_config", "final_layer_config", "lora_config")


@dataclass(frozen=True)
class _Sizes:
    """What the model does to a clip: pixels per latent, latents per patch, and the largest clip with positions."""

    spatial_compression: int
    temporal_compression: int
    patch: tuple[int, int]
    largest: tuple[int, int] | None  # height, width in pixels; None when no network is given
    longest: int  # pixel frames

    @property
    def multiple(self) -> tuple[int, int]:
        return self.spatial_compression * self.patch[0], self.spatial_compression * self.patch[1]


def check_consistency(
    args: TrainArgs | SampleArgs,
    model: ModelConfig,
    data: DataConfig | None,
    root: Node,
    report: Report,
    *,
    partial: bool,
) -> None:
    """Every disagreement goes to the report, at the place where the key was written.

    Args:
        partial: the files are only a part of a configuration, so defaults say nothing.
    """
    check = _Check(root, report, partial)
    network = _positive(model.network_config["params"], _NETWORK, check)
    vae = _positive(model.first_stage_config["params"], _VAE, check)
    if network:
        _check_network(network, check)
    if network and vae:
        _check_vae(network, vae, check, image_to_video=model.noised_image_input)
    encoder = (model.conditioner_config["params"].get("encoder") or {}).get("params")
    if network and encoder:
        path = "model.conditioner_config.params.encoder.params.max_length"
        expected = network.get("text_length", 226)
        check.equal(path, encoder.get("max_length", 226), "the network's text_length", expected)
    sizes = _sizes(network, vae)
    if data is not None:
        _check_size("data.video_size", data.video_size, sizes, check)
        _check_frames("data.max_num_frames", data.max_num_frames, sizes, check)
    if isinstance(args, SampleArgs):
        if args.sampling_image_size is not None:
            _check_size("args.sampling_image_size", args.sampling_image_size, sizes, check)
        elif not model.noised_image_input:
            check.error(
                "args.sampling_image_size",
                "missing: give [height, width]; only image-to-video takes the size from the image",
            )
        if args.image2video not in (None, model.noised_image_input):
            kind = "image-to-video" if model.noised_image_input else "text-to-video"
            check.error(
                "args.image2video",
                f"{str(args.image2video).lower()} contradicts the model, which is {kind} (model.noised_image_input)",
            )
        if args.sampling_num_frames < 1:
            check.error("args.sampling_num_frames", f"must be at least 1, not {args.sampling_num_frames}")
        frames = (max(1, args.sampling_num_frames) - 1) * sizes.temporal_compression + 1
        _check_frames("args.sampling_num_frames", frames, sizes, check)
        channels = vae.get("z_channels", 16)
        check.equal("args.latent_channels", args.latent_channels, "the VAE's z_channels", channels)
    elif args.sample_num_frames is not None:
        _check_frames("args.sample_num_frames", args.sample_num_frames, sizes, check)


def _positive(params: dict[str, Any], path: str, check: _Check) -> dict[str, Any]:
    """The parameters without sizes below 1, which are reported."""
    kept = {}
    for name, value in params.items():
        numbers = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]
        smallest = 0 if name in _MAY_BE_ZERO else 1
        if any(number < smallest for number in numbers) or value == []:
            check.error(f"{path}.{name}", f"must be at least {smallest}, not {value}")
        else:
            kept[name] = value
    return kept


def _check_network(network: dict[str, Any], check: _Check) -> None:
    hidden, heads = network.get("hidden_size"), network.get("num_attention_heads")
    if hidden and heads and hidden % heads:
        check.error(f"{_NETWORK}.hidden_size", f"{hidden} is not divisible by {heads} attention heads")
    patch = network.get("patch_size", 2)
    if isinstance(patch, Sequence) and len(patch) != 3:
        check.error(f"{_NETWORK}.patch_size", f"must be one number or [frames, height, width], not {list(patch)}")
    problem = frame_count_problem(network.get("num_frames", 49), network.get("temporal_compression", 4))
    if problem:
        check.error(f"{_NETWORK}.num_frames", problem)
    modules = network.get("modules") or {}
    for slot in modules:
        if slot not in NETWORK_SLOTS:
            check.error(f"{_NETWORK}.modules.{slot}", f"unknown entry {slot!r}; {suggestion(slot, NETWORK_SLOTS)}")
    missing = [slot for slot in NETWORK_SLOTS[:-1] if slot not in modules]
    if missing:
        check.error(f"{_NETWORK}.modules", f"missing: {', '.join(missing)}")
    rank = ((modules.get("lora_config") or {}).get("params") or {}).get("r")
    if rank is not None and rank < 1:
        check.error(f"{_NETWORK}.modules.lora_config.params.r", f"the rank must be at least 1, not {rank}")


def _check_vae(network: dict[str, Any], vae: dict[str, Any], check: _Check, *, image_to_video: bool) -> None:
    channels = vae.get("z_channels", 16)
    check.equal(f"{_NETWORK}.out_channels", network.get("out_channels", 16), "the VAE's z_channels", channels)
    frames = vae.get("temporal_compression", 4)
    given = network.get("temporal_compression", 4)
    check.equal(f"{_NETWORK}.temporal_compression", given, "the VAE's temporal_compression", frames)
    in_channels = network.get("in_channels", 16)
    path = f"{_NETWORK}.in_channels"
    if in_channels == 2 * channels and not image_to_video:
        text = (
            f"{in_channels} channels are a noised latent and a first frame, {channels} each: an image-to-video network"
        )
        check.error(path, f"{text}; set model.noised_image_input=true, or in_channels: {channels}")
    elif in_channels == channels and image_to_video:
        text = f"{in_channels} channels leave no room for the first frame that model.noised_image_input adds"
        check.error(path, f"{text}; set {2 * channels}, or noised_image_input: false for text-to-video")
    else:
        expected = channels * (2 if image_to_video else 1)
        theirs = "twice the VAE's z_channels" if image_to_video else "the VAE's z_channels"
        check.equal(path, in_channels, theirs, expected)


def _sizes(network: dict[str, Any], vae: dict[str, Any]) -> _Sizes:
    patch = network.get("patch_size", 2)
    height, width = (patch[-2:][0], patch[-1]) if isinstance(patch, Sequence) else (patch, patch)
    spatial = 2 ** (len(vae.get("ch_mult", (1, 2, 2, 4))) - 1)
    grid = (network.get("latent_height", 60) * spatial, network.get("latent_width", 90) * spatial)
    return _Sizes(
        spatial_compression=spatial,
        temporal_compression=vae.get("temporal_compression", 4),
        patch=(height, width),
        largest=grid if network else None,
        longest=network.get("num_frames", 49),
    )


def _check_size(path: str, size: tuple[int, int], sizes: _Sizes, check: _Check) -> None:
    problem = size_problem(size, sizes.multiple)
    if problem:
        check.error(path, problem)
    elif sizes.largest and any(side > most for side, most in zip(size, sizes.largest, strict=True)):
        check.error(path, f"{list(size)} is larger than the network's positions, which end at {list(sizes.largest)}")


def _check_frames(path: str, frames: int, sizes: _Sizes, check: _Check) -> None:
    problem = frame_count_problem(frames, sizes.temporal_compression)
    if problem:
        check.error(path, problem)
    elif sizes.largest and frames > sizes.longest:
        check.error(path, f"{frames} pixel frames are more than the network's {sizes.longest} (num_frames)")


class _Check:
    """Reports at the place where a key was written, or at its path when it is a default."""

    def __init__(self, root: Node, report: Report, partial: bool) -> None:
        self.root, self.report, self.partial = root, report, partial

    def error(self, path: str, text: str) -> None:
        node = find(self.root, path)
        if node is not None:
            self.report.error(node.origin, text)
        elif not self.partial:
            self.report.error(Origin("", None, path), text)

    def equal(self, path: str, value: int, other: str, expected: int) -> None:
        if value != expected:
            self.error(path, f"{value} differs from {other}, {expected}")
