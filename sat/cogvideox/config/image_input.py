"""Image-to-video: its keys, the network's channels and the sampling arguments must agree."""

from __future__ import annotations

from typing import Any

from cogvideox.config.clip_sizes import patch_triple
from cogvideox.config.findings import Findings
from cogvideox.config.schema import ModelConfig, SampleArgs, TrainArgs

_NETWORK = "model.network_config.params"


def check_image_input(
    args: TrainArgs | SampleArgs, model: ModelConfig, network: dict[str, Any], vae: dict[str, Any], findings: Findings
) -> None:
    """`network` and `vae` are the parameters of their nodes, {} for one that is not given."""
    if not network:
        return
    if vae:
        _check_channels(model, network, vae.get("z_channels", 16), findings)
    _check_ofs(model, network, findings)
    if not model.noised_image_input:
        if model.image_latent_scale is not None:
            findings.error("model.image_latent_scale", "only image-to-video has it: set model.noised_image_input=true")
        if model.noised_image_dropout:
            findings.warn("model.noised_image_dropout", "no effect: model.noised_image_input is false")
    if isinstance(args, SampleArgs):
        _check_sampling(args, model, findings)


def _check_channels(model: ModelConfig, network: dict[str, Any], channels: int, findings: Findings) -> None:
    """A latent has `channels`; an image-to-video network takes two of them and gives one."""
    given = network.get("in_channels", 16)
    path = f"{_NETWORK}.in_channels"
    findings.equal(f"{_NETWORK}.out_channels", network.get("out_channels", 16), "the VAE's z_channels", channels)
    if model.noised_image_input and given == channels:
        text = f"{given} channels leave no room for the first frame that model.noised_image_input adds"
        findings.error(path, f"{text}; set {2 * channels}, or noised_image_input: false for text-to-video")
    elif not model.noised_image_input and given == 2 * channels:
        text = f"{given} channels hold a noised latent and a first frame, {channels} each: image-to-video"
        findings.error(path, f"{text}; set model.noised_image_input=true, or {channels} channels for text-to-video")
    elif model.noised_image_input:
        findings.equal(path, given, "twice the VAE's z_channels", 2 * channels)
    else:
        findings.equal(path, given, "the VAE's z_channels", channels)


def _check_ofs(model: ModelConfig, network: dict[str, Any], findings: Findings) -> None:
    """The released 1.5-I2V weights have an embedding of a constant that is added to the timestep's."""
    width, path = network.get("ofs_embed_dim"), f"{_NETWORK}.ofs_embed_dim"
    if width is None:
        if network.get("ofs") is not None:
            findings.warn(f"{_NETWORK}.ofs", "no effect without ofs_embed_dim (1.5 image-to-video: 512)")
        if model.noised_image_input and patch_triple(network)[0] == 2:
            findings.warn(path, "not given, but the released 1.5 image-to-video weights have it: 512")
        return
    if not model.noised_image_input:
        findings.error(path, "only image-to-video networks (1.5) have it: set null, or model.noised_image_input=true")
    findings.equal(path, width, "time_embed_dim, to which it is added", network.get("time_embed_dim", 512))


def _check_sampling(args: SampleArgs, model: ModelConfig, findings: Findings) -> None:
    if args.sampling_image_size is None and not model.noised_image_input:
        text = "missing: give [height, width]; only image-to-video takes the size from the image"
        findings.error("args.sampling_image_size", text)
    if args.image2video not in (None, model.noised_image_input):
        kind = "image-to-video" if model.noised_image_input else "text-to-video"
        text = f"{str(args.image2video).lower()} contradicts the model, which is {kind} (model.noised_image_input)"
        findings.error("args.image2video", text)
