"""What diffusers' configuration files may say, key by key: used, fixed, or without effect on what is computed here.

Tests compare these tables with the constructors in diffusers, so that a new key is noticed. A key that a file leaves
out has diffusers' default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cogvideox.errors import CheckpointError
from cogvideox.user_files import shown
from cogvideox.weights.diffusers_folder import DDIM_SCHEDULER, DPM_SCHEDULER

Kind = Literal["count", "counts", "number", "flag", "count or null"]
_LARGEST = 2**20
_EMPTY: tuple[Any, ...] = (None, False, [], {}, "")


@dataclass(frozen=True)
class ConfigKeys:
    """One class of diffusers. fixed: key -> the values that this program computes, then diffusers' default.

    levels: of a fixed key whose value is a list, one entry for each level of the network.
    """

    used: Mapping[str, Kind]
    fixed: Mapping[str, tuple[tuple[Any, ...], Any]]
    without_effect: tuple[str, ...] = ()
    levels: Mapping[str, str] | None = None

    def check(self, config: Mapping[str, Any], source: str) -> None:
        """Raises: CheckpointError for a value of a wrong type, one that is not computed here, and an unknown key."""
        for key, kind in self.used.items():
            if key in config and not _fits(config[key], kind):
                raise CheckpointError(f"{source}: {key} is {shown(config[key])}; expected is {_EXPECTED[kind]}")
        wrong = [
            f"{key} {shown(config.get(key, default))} (computed here: {' or '.join(map(repr, values))})"
            for key, (values, default) in self.fixed.items()
            if not any(_equal(config.get(key, default), value) for value in values)
        ]
        for key, name in (self.levels or {}).items():
            if any(each != name for each in _listed(config.get(key, [name]))):
                wrong.append(f"{key} {shown(config[key])} (computed here: {name!r} at every level)")
        known = {*self.used, *self.fixed, *self.without_effect, *(self.levels or {})}
        wrong += [
            f"{key} {shown(value)} (not known here)"
            for key, value in config.items()
            if key not in known and not key.startswith("_") and value not in _EMPTY
        ]
        if wrong:
            raise CheckpointError(
                f"{source} describes what this program does not compute: {', '.join(wrong)}: converted, the model "
                "would give other results"
            )


TRANSFORMER_KEYS = ConfigKeys(
    used={
        "num_attention_heads": "count",
        "attention_head_dim": "count",
        "in_channels": "count",
        "out_channels": "count",
        "time_embed_dim": "count",
        "ofs_embed_dim": "count or null",
        "text_embed_dim": "count",
        "num_layers": "count",
        "sample_width": "count",
        "sample_height": "count",
        "sample_frames": "count",
        "patch_size": "count",
        "patch_size_t": "count or null",
        "temporal_compression_ratio": "count",
        "max_text_seq_length": "count",
        "spatial_interpolation_scale": "number",
        "temporal_interpolation_scale": "number",
        "use_rotary_positional_embeddings": "flag",
        "use_learned_positional_embeddings": "flag",
    },
    fixed={
        "flip_sin_to_cos": ((True,), True),
        "freq_shift": ((0,), 0),
        "dropout": ((0.0,), 0.0),
        "attention_bias": ((True,), True),
        "activation_fn": (("gelu-approximate",), "gelu-approximate"),
        "timestep_activation_fn": (("silu", "swish"), "silu"),
        "norm_elementwise_affine": ((True,), True),
        "norm_eps": ((1e-5,), 1e-5),
    },
    without_effect=("patch_bias",),  # the weights say it; the released 1.5 models say false and hold one
)
# diffusers' defaults of what is used of a VAE.
VAE_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "layers_per_block": 3,
    "norm_num_groups": 32,
    "temporal_compression_ratio": 4,
    "scaling_factor": 1.15258426,
    "invert_scale_latents": False,
}
VAE_KEYS = ConfigKeys(
    used={
        "in_channels": "count",
        "out_channels": "count",
        "block_out_channels": "counts",
        "latent_channels": "count",
        "layers_per_block": "count",
        "norm_num_groups": "count",
        "temporal_compression_ratio": "count",
        "scaling_factor": "number",
        "invert_scale_latents": "flag",
    },
    fixed={
        "act_fn": (("silu", "swish"), "silu"),
        "norm_eps": ((1e-6,), 1e-6),
        "shift_factor": ((None,), None),
        "latents_mean": ((None,), None),
        "latents_std": ((None,), None),
        "use_quant_conv": ((False,), False),
        "use_post_quant_conv": ((False,), False),
    },
    levels={"down_block_types": "CogVideoXDownBlock3D", "up_block_types": "CogVideoXUpBlock3D"},
    without_effect=("sample_height", "sample_width", "force_upcast"),  # of tiles, and of a type that is chosen here
)
SCHEDULER_KEYS = ConfigKeys(
    used={
        "num_train_timesteps": "count",
        "beta_start": "number",
        "beta_end": "number",
        "rescale_betas_zero_snr": "flag",
        "snr_shift_scale": "number",
    },
    fixed={
        "beta_schedule": (("scaled_linear",), "scaled_linear"),
        "trained_betas": ((None,), None),
        "prediction_type": (("v_prediction",), "epsilon"),
        "timestep_spacing": (("trailing",), "leading"),
        "set_alpha_to_one": ((True,), True),
    },
    # Both schedulers store the first three and clip nothing; the offset belongs to another spacing.
    without_effect=("clip_sample", "clip_sample_range", "sample_max_value", "steps_offset"),
)
SCHEDULERS = (DDIM_SCHEDULER, DPM_SCHEDULER)
_EXPECTED: Mapping[Kind, str] = {
    "count": f"a whole number from 1 to {_LARGEST}",
    "counts": "a list of whole numbers",
    "number": "a number above 0",
    "flag": "true or false",
    "count or null": "a whole number or null",
}


def check_scheduler(config: Mapping[str, Any], source: str) -> None:
    """Raises: CheckpointError for another scheduler than CogVideoX's, or settings that aren't computed here."""
    name = config.get("_class_name", SCHEDULERS[0])
    if name not in SCHEDULERS:
        raise CheckpointError(f"{source} describes a {shown(name)}; CogVideoX's schedulers are {', '.join(SCHEDULERS)}")
    SCHEDULER_KEYS.check(config, source)


def _fits(value: object, kind: Kind) -> bool:
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "number":
        return type(value) in (int, float) and 0 < value < 1e6  # type: ignore[operator]
    if kind == "counts":
        return isinstance(value, list) and bool(value) and all(_fits(each, "count") for each in value)
    if kind == "count or null" and value is None:
        return True
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return whole and 1 <= value <= _LARGEST  # type: ignore[operator]


def _equal(value: object, expected: object) -> bool:
    """Whether a JSON value is the expected one; 1 is no true, and 1e-05 may have been rounded."""
    if type(expected) in (int, float) and type(value) in (int, float):
        return abs(value) < 1e6 and abs(value - expected) <= 1e-3 * abs(expected)  # type: ignore[arg-type,operator]
    return type(value) is type(expected) and value == expected


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]
