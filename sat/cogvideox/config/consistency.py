"""Keys that say the same in two places: settled before the sections are read, compared afterwards."""

from __future__ import annotations

from typing import Any

from cogvideox.config.limits import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from cogvideox.config.report import Origin, Report
from cogvideox.config.schema import DataConfig, Kind, ModelConfig, SampleArgs, TrainArgs
from cogvideox.config.tree import Node

_SAT_SCHEDULE_KEYS = ("warmup", "lr_decay_style", "lr_decay_ratio")


def find(root: Node, path: str) -> Node | None:
    """The node at a dotted path, or None."""
    node: Node | None = root
    for key in path.split("."):
        node = None if node is None else node.child(key)
    return node


def put(root: Node, path: str, node: Node) -> None:
    """Set a node at a dotted path; mappings on the way are made."""
    *parents, last = path.split(".")
    here = root
    for key in parents:
        step = here.child(key)
        if step is None or step.value is None:
            step = Node({}, node.origin)
            here.value[key] = step
        if not isinstance(step.value, dict):
            return  # a wrong type, which the section's own check reports
        here = step
    here.value[last] = node


def settle_shared_keys(root: Node, kind: Kind, report: Report, *, published: bool) -> None:
    """Give every component the value of the flat key that stands for it; the flat key wins.

    Args:
        published: the files use published names, so a missing learning-rate schedule means SAT's own.
    """
    if find(root, "model.network_config") is not None:
        network = "model.network_config.params"
        if kind == "train":
            _tie(root, "args.checkpoint_activations", f"{network}.checkpoint_activations")
        _tie(root, "model.compile_model", f"{network}.compile_blocks")
    if kind == "sample":
        _settle_sampler(root)
    elif find(root, "args.lr_schedule") is None:
        _settle_schedule(root, report, published=published)


def _tie(root: Node, flat: str, param: str) -> None:
    given, held = find(root, flat), find(root, param)
    if given is not None:
        put(root, param, given)
    elif held is not None:
        put(root, flat, held)


def _settle_sampler(root: Node) -> None:
    """args.num_steps and args.guidance_scale go to the sampler, the steps to its dynamic guidance too."""
    guidance = find(root, "model.sampler_config.params.guidance")
    steps = find(root, "args.num_steps")
    if steps is not None and steps.value is not None and find(root, "model.sampler_config") is not None:
        put(root, "model.sampler_config.params.num_steps", steps)
        target = None if guidance is None else guidance.child("target")
        if target is not None and str(target.value).endswith(".DynamicGuidance"):
            put(root, "model.sampler_config.params.guidance.params.num_steps", steps)
    scale = find(root, "args.guidance_scale")
    if scale is not None and scale.value is not None and guidance is not None:
        put(root, "model.sampler_config.params.guidance.params.scale", scale)


def _settle_schedule(root: Node, report: Report, *, published: bool) -> None:
    own = [key for key in _SAT_SCHEDULE_KEYS if find(root, f"args.{key}") is not None]
    if published or own:
        put(root, "args.lr_schedule", Node("sat", Origin("", None, "args.lr_schedule")))
        report.notice(
            "args.lr_schedule is not given: sat (SAT's own: 100 steps at 5 % of lr, then annealing), as these "
            "files have always run; args.lr_schedule=constant keeps the rate that is written"
        )


def check_consistency(
    args: TrainArgs | SampleArgs, model: ModelConfig, data: DataConfig | None, root: Node, report: Report
) -> None:
    """Compare sizes that must agree between sections."""
    network = model.network_config["params"]
    check = _Comparison(root, report)
    _check_network(network, check)
    _check_neighbours(network, model, check)
    if isinstance(args, SampleArgs):
        check.equal(
            "args.latent_channels",
            args.latent_channels,
            "network's out_channels",
            network.get("out_channels", 16),
        )
        frames = (args.sampling_num_frames - 1) * TEMPORAL_COMPRESSION + 1
        _check_grid(
            "args.sampling_image_size",
            args.sampling_image_size,
            "args.sampling_num_frames",
            frames,
            network,
            check,
        )
    elif data is not None:
        _check_grid(
            "data.video_size", data.video_size, "data.max_num_frames", data.max_num_frames, network, check
        )


def _check_network(network: dict[str, Any], check: _Comparison) -> None:
    hidden, heads = network.get("hidden_size"), network.get("num_attention_heads")
    if hidden and heads and hidden % heads:
        check.error(
            "model.network_config.params.hidden_size", f"{hidden} is not divisible by {heads} attention heads"
        )
    for slot, node in (network.get("modules") or {}).items():
        rank = None if not isinstance(node, dict) else node.get("params", {}).get("r")
        if slot == "lora_config" and rank is not None and rank < 1:
            check.error(
                "model.network_config.params.modules.lora_config.params.r",
                f"the rank must be at least 1, not {rank}",
            )


def _check_neighbours(network: dict[str, Any], model: ModelConfig, check: _Comparison) -> None:
    vae = model.first_stage_config["params"]
    if network and vae:
        z_channels = vae.get("z_channels", 16)
        path = "model.network_config.params.in_channels"
        check.equal(path, network.get("in_channels", 16), "VAE's z_channels", z_channels)
    encoder = model.conditioner_config["params"].get("encoder") or {}
    if network and encoder.get("params"):
        check.equal(
            "model.conditioner_config.params.encoder.params.max_length",
            encoder["params"].get("max_length", 226),
            "network's text_length",
            network.get("text_length", 226),
        )


def _check_grid(
    size_path: str,
    size: tuple[int, int],
    frames_path: str,
    frames: int,
    network: dict[str, Any],
    check: _Comparison,
) -> None:
    """The position table is cut to the clip: a clip larger than the table has no positions."""
    if not network:
        return
    grid = (network.get("latent_height", 60), network.get("latent_width", 90))
    legal = [side * SPATIAL_COMPRESSION for side in grid]
    if any(side > largest for side, largest in zip(size, legal, strict=True)):
        check.error(size_path, f"{list(size)} is larger than the network's positions, which end at {legal}")
    longest = network.get("num_frames", 49)
    if frames > longest:
        check.error(frames_path, f"{frames} pixel frames are more than the network's {longest} (num_frames)")


class _Comparison:
    """Reports at the place where a key was written, or at its path when it is a default."""

    def __init__(self, root: Node, report: Report) -> None:
        self.root, self.report = root, report

    def error(self, path: str, text: str) -> None:
        node = find(self.root, path)
        self.report.error(Origin("", None, path) if node is None else node.origin, text)

    def equal(self, path: str, value: int, other: str, expected: int) -> None:
        if value != expected:
            self.error(path, f"{value} differs from the {other}, {expected}")
