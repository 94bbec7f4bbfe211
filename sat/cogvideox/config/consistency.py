"""What must agree between the sections: the clip, the network, the VAE, the text encoder and the precision."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from cogvideox.config.buckets import read_buckets
from cogvideox.config.clip_sizes import ROTARY, positions, read_sizes
from cogvideox.config.findings import Findings
from cogvideox.config.generation import check_frame_rate
from cogvideox.config.image_input import check_image_input
from cogvideox.config.report import suggestion
from cogvideox.config.schema import Config, SampleArgs
from cogvideox.config.signatures import read_signature
from cogvideox.geometry import Geometry
from cogvideox.released import V1_0

_NETWORK = "model.network_config.params"
_VAE = "model.first_stage_config.params"
_SAMPLER = "model.sampler_config.params"
_DYNAMIC = "cogvideox.diffusion.guidance.DynamicGuidance"
_MAY_BE_ZERO = ("num_res_blocks",)
# Entries of the network's `modules`; all but the last must be there.
NETWORK_SLOTS = ("pos_embed_config", "patch_embed_config", "adaln_layer_config", "final_layer_config", "lora_config")


def check_consistency(config: Config, findings: Findings) -> None:
    """Every disagreement goes to the report, at the place where the key was written."""
    args, model = config.args, config.model
    network = _positive(model.network_config["params"], _NETWORK, findings)
    vae = _positive(model.first_stage_config["params"], _VAE, findings)
    if network:
        _check_network(network, findings)
        _check_precision(config, network, findings)
        check_frame_rate(config, network, findings)
    if network and vae:
        frames = network.get("temporal_compression", 4)
        theirs = vae.get("temporal_compression", 4)
        findings.equal(f"{_NETWORK}.temporal_compression", frames, "the VAE's temporal_compression", theirs)
    _check_guidance(config, findings)
    check_image_input(args, model, network, vae, findings)
    encoder = (model.conditioner_config["params"].get("encoder") or {}).get("params")
    if network and encoder:
        path = "model.conditioner_config.params.encoder.params.max_length"
        expected = network.get("text_length", V1_0.text_length)
        findings.equal(path, encoder.get("max_length", V1_0.text_length), "the network's text_length", expected)
    sizes = read_sizes(network, vae)
    if config.data is not None:
        sizes.check_size("data.video_size", config.data.video_size, findings)
        sizes.check_frames("data.max_num_frames", config.data.max_num_frames, findings)
        read_buckets(config.data, sizes, findings)
    if isinstance(args, SampleArgs):
        if args.sampling_image_size is not None:
            sizes.check_size("args.sampling_image_size", args.sampling_image_size, findings)
        sizes.check_latent_frames("args.sampling_num_frames", args.sampling_num_frames, findings)
        channels = vae.get("z_channels", 16)
        findings.equal("args.latent_channels", args.latent_channels, "the VAE's z_channels", channels)
    else:
        if args.sample_num_frames is not None:
            sizes.check_frames("args.sample_num_frames", args.sample_num_frames, findings)
        if args.wandb and find_spec("wandb") is None:
            findings.error("args.wandb", "the package wandb is not installed: pip install wandb, or set it to false")


def _positive(params: dict[str, Any], path: str, findings: Findings) -> dict[str, Any]:
    """The parameters without sizes below 1, which are reported. Sizes are whole numbers; floats (ofs) may be 0."""
    kept = {}
    for name, value in params.items():
        numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if type(n) is int]
        smallest = 0 if name in _MAY_BE_ZERO else 1
        if any(number < smallest for number in numbers) or value == []:
            findings.error(f"{path}.{name}", f"must be at least {smallest}, not {value}")
        else:
            kept[name] = value
    return kept


def _check_network(network: dict[str, Any], findings: Findings) -> None:
    hidden, heads = network.get("hidden_size"), network.get("num_attention_heads")
    if hidden and heads and hidden % heads:
        findings.error(f"{_NETWORK}.hidden_size", f"{hidden} is not divisible by {heads} attention heads")
    elif hidden and heads and positions(network).get("target") == ROTARY and hidden // heads % 16:
        text = f"rotary positions need heads of a multiple of 16 channels, not {hidden} / {heads} = {hidden // heads}"
        findings.error(f"{_NETWORK}.num_attention_heads", text)
    positions_params = positions(network).get("params") or {}
    if positions_params.get("learnable_pos_embed") and positions_params.get("resize") == "interpolate":
        text = "a learned table (learnable_pos_embed: true) can't be interpolated: slice"
        findings.error(f"{_NETWORK}.modules.pos_embed_config.params.resize", text)
    patch = network.get("patch_size", 2)
    if isinstance(patch, Sequence) and len(patch) != 3:
        findings.error(f"{_NETWORK}.patch_size", f"must be one number or [frames, height, width], not {list(patch)}")
    elif isinstance(patch, Sequence) and patch[0] > 2:
        findings.error(f"{_NETWORK}.patch_size", f"patches hold 1 or 2 latent frames, not {patch[0]}")
    # The table's frames, which patches of 2 needn't divide: 81 frames are 21 rows.
    problem = Geometry(network.get("temporal_compression", 4)).frames_problem(
        network.get("num_frames", V1_0.clip.frames)
    )
    if problem:
        findings.error(f"{_NETWORK}.num_frames", problem)
    modules = network.get("modules") or {}
    for slot in modules:
        if slot not in NETWORK_SLOTS:
            findings.error(f"{_NETWORK}.modules.{slot}", f"unknown entry {slot!r}; {suggestion(slot, NETWORK_SLOTS)}")
    missing = [slot for slot in NETWORK_SLOTS[:-1] if slot not in modules]
    if missing:
        findings.error(f"{_NETWORK}.modules", f"missing: {', '.join(missing)}")
    rank = ((modules.get("lora_config") or {}).get("params") or {}).get("r")
    if rank is not None and rank < 1:
        findings.error(f"{_NETWORK}.modules.lora_config.params.r", f"the rank must be at least 1, not {rank}")


def _check_precision(config: Config, network: dict[str, Any], findings: Findings) -> None:
    """The rotary families were trained in bf16."""
    fp16 = config.args.fp16 if config.kind == "sample" else config.deepspeed.precision == "fp16"
    if fp16 and positions(network).get("target") == ROTARY:
        path = "args.fp16" if config.kind == "sample" else "deepspeed.fp16.enabled"
        text = "CogVideoX 5B and 1.5 were trained in bf16 and overflow in fp16 (NaN, black video)"
        findings.warn(path, f"{text}: use bf16")


def _check_guidance(config: Config, findings: Findings) -> None:
    """Sampler and dynamic guidance each hold the number of steps, and the published scales need it to be one number."""
    sampler = config.model.sampler_config
    guidance = sampler["params"].get("guidance") or {}
    if guidance.get("target") != _DYNAMIC or guidance["params"].get("by") == "step":
        return  # by step takes the sampler's
    if config.kind == "train" and (not config.train_args.eval_prompts or config.train_args.sample_steps is not None):
        return  # nothing is sampled, or both get sample_steps
    steps, counted = (
        {**read_signature(node["target"]).defaults, **node["params"]}.get("num_steps") for node in (sampler, guidance)
    )
    if steps != counted:
        text = (
            f"{counted} differs from the sampler's num_steps, {steps}, which gives other scales than either number does"
        )
        flat = "args.num_steps" if config.kind == "sample" else "args.sample_steps"
        findings.warn(f"{_SAMPLER}.guidance.params.num_steps", f"{text}: make them one, or set {flat}, which sets both")
