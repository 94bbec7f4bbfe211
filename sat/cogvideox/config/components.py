"""The classes that YAML may name, by the key that holds them. Nothing else is ever imported for a configuration.

Published names become these by the table of `aliases.py`, before anything is checked.
"""

from __future__ import annotations

from collections.abc import Mapping

_NETWORK = "cogvideox.transformer."
_DIFFUSION = "cogvideox.diffusion."

SLOTS: Mapping[str, tuple[str, ...]] = {
    "network_config": (f"{_NETWORK}model.DiffusionTransformer",),
    "patch_embed_config": (f"{_NETWORK}patch_embed.PatchEmbedMixin",),
    "pos_embed_config": (f"{_NETWORK}positions.SinCosPositionMixin", f"{_NETWORK}positions.RotaryPositionMixin"),
    "adaln_layer_config": (f"{_NETWORK}adaln.AdaLNMixin",),
    "final_layer_config": (f"{_NETWORK}final_layer.FinalLayerMixin",),
    "lora_config": (f"{_NETWORK}lora.LoraMixin",),
    "first_stage_config": ("cogvideox.vae.autoencoder.VideoAutoencoder",),
    "conditioner_config": ("cogvideox.text.conditioner.Conditioner",),
    "encoder": ("cogvideox.text.encoders.T5Encoder",),
    "schedule_config": (f"{_DIFFUSION}schedule.NoiseSchedule",),
    "loss_fn_config": (f"{_DIFFUSION}loss.VideoDiffusionLoss",),
    "sampler_config": (
        f"{_DIFFUSION}samplers.DDIMSampler",
        f"{_DIFFUSION}samplers.DPMpp2MSampler",
        f"{_DIFFUSION}samplers.DPMpp2MSDESampler",
    ),
    "guidance": (f"{_DIFFUSION}guidance.ConstantGuidance", f"{_DIFFUSION}guidance.DynamicGuidance"),
}
COMPONENTS: tuple[str, ...] = tuple(target for targets in SLOTS.values() for target in targets)


def allowed_targets(key: str) -> tuple[str, ...]:
    """What the component under this key may be; every component's class for a key without classes of its own."""
    return SLOTS.get(key, COMPONENTS)
