"""The one table from published names to ours: targets, their parameters, and what has no counterpart here.

`translate.py` applies it. A published component is a class of ours under another name, or a part that is folded
into its parent (`target` None).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DIT = "dit_video_concat."
_SGM = "sgm.modules.diffusionmodules."
_VAE = "vae_modules."
PUBLISHED_ROTARY = f"{_DIT}Rotary3DPositionEmbeddingMixin"


@dataclass(frozen=True)
class Alias:
    """What one published target becomes.

    Attributes:
        target: our class; None for a part that its parent takes in.
        rename: published parameter -> ours. A parameter that is in none of these maps keeps its name.
        fixed: parameters that this program computes in one way only: any other value is an error.
        no_effect: parameters that say nothing here; named once in a message.
        parts: published parameter -> the one target that it may hold, which is what this program computes.
        defaults: our parameters whose published default differs from ours.
    """

    target: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    no_effect: frozenset[str] = frozenset()
    parts: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_SAMPLER: dict[str, Any] = {
    "rename": {"guider_config": "guidance"},
    "fixed": {"fixed_frames": 0},
    "no_effect": frozenset({"verbose", "device"}),
}
_CODER = Alias(
    rename={"out_ch": "out_channels", "temporal_compress_times": "temporal_compression"},
    fixed={"double_z": True, "dropout": 0.0, "pad_mode": "first"},
    no_effect=frozenset({"resolution", "attn_resolutions", "gather_norm"}),
)

ALIASES: dict[str, Alias] = {
    # data
    "data_video.SFTDataset": Alias(),
    # transformer
    f"{_DIT}DiffusionTransformer": Alias(
        "cogvideox.transformer.model.DiffusionTransformer",
        rename={"time_compressed_rate": "temporal_compression"},
        fixed={
            "elementwise_affine": True,
            "num_classes": None,
            "input_time": "adaln",
            "use_SwiGLU": False,
            "use_RMSNorm": False,
        },
        no_effect=frozenset({"adm_in_channels", "augmentation_dropout", "parallel_output"}),
    ),
    f"{_DIT}ImagePatchEmbeddingMixin": Alias("cogvideox.transformer.patch_embed.PatchEmbedMixin"),
    f"{_DIT}Basic3DPositionEmbeddingMixin": Alias("cogvideox.transformer.positions.SinCosPositionMixin"),
    PUBLISHED_ROTARY: Alias("cogvideox.transformer.positions.RotaryPositionMixin", fixed={"rot_v": False}),
    f"{_DIT}AdaLNMixin": Alias("cogvideox.transformer.adaln.AdaLNMixin"),
    f"{_DIT}FinalLayerMixin": Alias("cogvideox.transformer.final_layer.FinalLayerMixin"),
    "sat.model.finetune.lora2.LoraMixin": Alias(
        "cogvideox.transformer.lora.LoraMixin",
        fixed={"qlora": False},
        no_effect=frozenset({"cross_attention"}),
    ),
    # text
    "sgm.modules.GeneralConditioner": Alias("cogvideox.text.conditioner.Conditioner"),
    "sgm.modules.encoders.modules.FrozenT5Embedder": Alias(
        "cogvideox.text.encoders.T5Encoder", fixed={"freeze": True}, no_effect=frozenset({"device"})
    ),
    # diffusion
    f"{_SGM}denoiser.DiscreteDenoiser": Alias(
        fixed={"quantize_c_noise": False, "flip": True, "do_append_zero": False},
        no_effect=frozenset({"weighting_config", "num_idx"}),
        parts={"scaling_config": f"{_SGM}denoiser_scaling.VideoScaling"},
    ),
    f"{_SGM}denoiser_scaling.VideoScaling": Alias(),
    f"{_SGM}denoiser_weighting.EpsWeighting": Alias(),
    f"{_SGM}discretizer.ZeroSNRDDPMDiscretization": Alias(
        "cogvideox.diffusion.schedule.NoiseSchedule",
        rename={"linear_start": "beta_start", "linear_end": "beta_end"},
        fixed={"post_shift": False, "keep_start": False},
        defaults={"shift_scale": 1.0},
    ),
    f"{_SGM}sigma_sampling.DiscreteSampling": Alias(
        rename={"uniform_sampling": "stratified_timesteps"},
        fixed={"do_append_zero": False, "flip": True},
        no_effect=frozenset({"num_idx", "group_num"}),
    ),
    f"{_SGM}loss.VideoDiffusionLoss": Alias(
        "cogvideox.diffusion.loss.VideoDiffusionLoss",
        rename={"min_snr_value": "min_snr_gamma"},
        fixed={"offset_noise_level": 0.0, "type": "l2", "fixed_frames": 0},
        no_effect=frozenset({"batch2model_keys", "block_scale", "block_size"}),
    ),
    f"{_SGM}guiders.DynamicCFG": Alias("cogvideox.diffusion.guidance.DynamicGuidance"),
    f"{_SGM}guiders.VanillaCFG": Alias(
        "cogvideox.diffusion.guidance.ConstantGuidance", no_effect=frozenset({"dyn_thresh_config"})
    ),
    f"{_SGM}sampling.VPSDEDPMPP2MSampler": Alias("cogvideox.diffusion.samplers.DPMpp2MSDESampler", **_SAMPLER),
    f"{_SGM}sampling.VPODEDPMPP2MSampler": Alias("cogvideox.diffusion.samplers.DPMpp2MSampler", **_SAMPLER),
    f"{_SGM}sampling.VideoDDIMSampler": Alias("cogvideox.diffusion.samplers.DDIMSampler", **_SAMPLER),
    # VAE
    f"{_VAE}autoencoder.VideoAutoencoderInferenceWrapper": Alias(
        "cogvideox.vae.autoencoder.VideoAutoencoder",
        no_effect=frozenset({"cp_size", "ignore_keys", "loss_config", "monitor", "input_key"}),
        parts={"regularizer_config": f"{_VAE}regularizers.DiagonalGaussianRegularizer"},
    ),
    f"{_VAE}regularizers.DiagonalGaussianRegularizer": Alias(),
    f"{_VAE}cp_enc_dec.ContextParallelEncoder3D": _CODER,
    f"{_VAE}cp_enc_dec.ContextParallelDecoder3D": _CODER,
    "torch.nn.Identity": Alias(),
}

# For a component that got our target from a later file while its parameters are still the published ones.
BY_OUR_TARGET: dict[str, Alias] = {alias.target: alias for alias in ALIASES.values() if alias.target is not None}

# DeepSpeed's optimizer.type.
OPTIMIZER_ALIASES: dict[str, str] = {"sat.ops.FusedEmaAdam": "AdamW"}

# Flat keys of `model` that say nothing here and are no keys of ours.
MODEL_NO_EFFECT = ("augmentation_dropout",)

# An entry of GeneralConditioner's list, beside its target and params.
EMBEDDER = Alias(
    rename={"ucg_rate": "caption_dropout"},
    fixed={"is_trainable": False, "legacy_ucg_value": None, "input_key": "txt"},
    defaults={"caption_dropout": 0.0},
)

# network_config.params.transformer_args: what SAT's transformer was given.
TRANSFORMER_ARGS = Alias(
    fixed={"layernorm_order": "pre", "is_decoder": False, "model_parallel_size": 1},
    no_effect=frozenset({"vocab_size", "max_sequence_length", "skip_init"}),
)
