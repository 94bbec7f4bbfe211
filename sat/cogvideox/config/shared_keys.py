"""Keys that say the same in two places are settled before the sections are read; the flat key wins.

The same goes for defaults that depend on other keys.
"""

from __future__ import annotations

from dataclasses import replace

from cogvideox.config.generation import has_deep_patches, settle_sampling_defaults
from cogvideox.config.report import Origin, Report
from cogvideox.config.schema import Kind
from cogvideox.config.tree import Node, build, find, put

_NETWORK = "model.network_config.params"
_SAMPLER = "model.sampler_config"
_GUIDANCE = f"{_SAMPLER}.params.guidance"
_DYNAMIC = "cogvideox.diffusion.guidance.DynamicGuidance"
_CONSTANT = "cogvideox.diffusion.guidance.ConstantGuidance"
_SAT_SCHEDULE_KEYS = ("warmup", "lr_decay_style", "lr_decay_ratio")


def settle_shared_keys(root: Node, kind: Kind, report: Report, *, published: bool, partial: bool = False) -> None:
    """Give every component the value of the flat key that stands for it.

    Args:
        published: the files use published names, so a missing learning-rate schedule means SAT's own, and a batch size
            in sampling the videos of a prompt.
        partial: the files are only a part of a configuration, so missing keys stand in another one.
    """
    if _is_mapping(root, "model.network_config"):
        if kind == "train":
            _tie(root, "args.checkpoint_activations", f"{_NETWORK}.checkpoint_activations")
            _tie(root, "args.offload_activations", f"{_NETWORK}.offload_activations")
        _tie(root, "model.compile_model", f"{_NETWORK}.compile_blocks")
        _settle_image_scale(root, report)
    if kind == "sample":
        _settle_sampler(root)
        if published:
            _settle_videos_per_prompt(root, report)
        if not partial:
            settle_sampling_defaults(root, report)
    elif find(root, "args.lr_schedule") is None:
        _settle_schedule(root, report, published=published)
    _settle_guidance_steps(root, report)


def _is_mapping(root: Node, path: str) -> bool:
    node = find(root, path)
    return node is not None and isinstance(node.value, dict)


def _tie(root: Node, flat: str, param: str) -> None:
    given, held = find(root, flat), find(root, param)
    if given is not None:
        put(root, param, given)
    elif held is not None:
        put(root, flat, held)


def _settle_image_scale(root: Node, report: Report) -> None:
    """1.5 image-to-video (patches of 2 latent frames) takes the VAE's output as it is; null means scale_factor."""
    image = find(root, "model.noised_image_input")
    if image is None or image.value is not True or not has_deep_patches(root):
        return
    if find(root, "model.image_latent_scale") is None:
        put(root, "model.image_latent_scale", Node(1.0, replace(image.origin, path="model.image_latent_scale")))
        report.notice(
            "model.image_latent_scale is not given: 1.0, with which the released 1.5 image-to-video weights look right "
            "(null: scale_factor, as the original trained)"
        )


def _settle_sampler(root: Node) -> None:
    """args.num_steps and args.guidance_scale go to the sampler, the steps to its dynamic guidance too."""
    steps, scale = find(root, "args.num_steps"), find(root, "args.guidance_scale")
    given = [node for node in (steps, scale) if node is not None and node.value is not None]
    if not given:
        return
    if not _is_mapping(root, _SAMPLER):
        target = "cogvideox.diffusion.samplers.DPMpp2MSDESampler"
        guidance = {"target": _DYNAMIC, "params": {}}
        put(root, _SAMPLER, build({"target": target, "params": {"guidance": guidance}}, given[0].origin))
    if steps is not None and steps.value is not None:
        put(root, f"{_SAMPLER}.params.num_steps", steps)
        target_node = find(root, f"{_GUIDANCE}.target")
        if target_node is not None and target_node.value == _DYNAMIC:
            put(root, f"{_GUIDANCE}.params.num_steps", steps)
    if scale is not None and scale.value is not None:
        if find(root, f"{_GUIDANCE}.target") is None:  # `guidance: null`: the scale asks for some
            put(root, _GUIDANCE, build({"target": _CONSTANT, "params": {}}, scale.origin))
        put(root, f"{_GUIDANCE}.params.scale", scale)


def _settle_guidance_steps(root: Node, report: Report) -> None:
    """Guidance by step counts the sampler's steps, which `Sampler` sees to; here the files are made to say so."""
    target, by = find(root, f"{_GUIDANCE}.target"), find(root, f"{_GUIDANCE}.params.by")
    steps = find(root, f"{_SAMPLER}.params.num_steps")
    if steps is None or target is None or by is None or (target.value, by.value) != (_DYNAMIC, "step"):
        return
    held = find(root, f"{_GUIDANCE}.params.num_steps")
    put(root, f"{_GUIDANCE}.params.num_steps", steps)
    if held is not None and held.value != steps.value:
        report.notice(
            f"{held.origin.place()}: {held.origin.path}: {steps.value} instead of {held.value}: "
            "guidance by step counts the sampler's steps"
        )


def _settle_videos_per_prompt(root: Node, report: Report) -> None:
    """The original's sampling loop makes `batch_size` videos of a prompt, one after the other."""
    given = find(root, "args.batch_size")
    if given is None or given.value in (None, 1) or find(root, "args.num_samples") is not None:
        return
    put(root, "args.num_samples", given)
    put(root, "args.batch_size", Node(1, given.origin))
    report.notice(
        f"{given.origin.place()}: args.batch_size {given.value} is the number of videos per prompt in published files: "
        "args.num_samples has it, and one is made at a time; write args.num_samples as well to make several at once"
    )


def _settle_schedule(root: Node, report: Report, *, published: bool) -> None:
    if published or any(find(root, f"args.{key}") is not None for key in _SAT_SCHEDULE_KEYS):
        put(root, "args.lr_schedule", Node("sat", Origin("", None, "args.lr_schedule")))
        report.notice(
            "args.lr_schedule is not given: sat (SAT's own: 100 steps at 5 % of lr, then annealing), as these "
            "files have always run; args.lr_schedule=constant keeps the rate as written"
        )
