"""Every key of diffusers' configurations is used, fixed, or known to have no effect: compared with diffusers itself."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from cogvideox.conversion.diffusers_import.config_keys import (
    SCHEDULER_KEYS,
    TRANSFORMER_KEYS,
    VAE_DEFAULTS,
    VAE_KEYS,
    ConfigKeys,
    check_scheduler,
)
from cogvideox.errors import CheckpointError
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
)

CLASSES = [
    (TRANSFORMER_KEYS, CogVideoXTransformer3DModel),
    (VAE_KEYS, AutoencoderKLCogVideoX),
    (SCHEDULER_KEYS, CogVideoXDDIMScheduler),
    (SCHEDULER_KEYS, CogVideoXDPMScheduler),
]
OTHER: dict[str, Any] = {
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "dropout": 0.1,
    "attention_bias": False,
    "activation_fn": "gelu",
    "timestep_activation_fn": "gelu",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-3,
    "act_fn": "relu",
    "shift_factor": 0.1,
    "latents_mean": [0.0],
    "latents_std": [1.0],
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "beta_schedule": "linear",
    "trained_betas": [0.1],
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "set_alpha_to_one": False,
}
TRAINED = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}  # what diffusers' defaults don't say


def names(keys: ConfigKeys) -> list[str]:
    return [*keys.used, *keys.fixed, *keys.without_effect, *(keys.levels or {})]


@pytest.mark.parametrize(("keys", "kind"), CLASSES, ids=lambda value: getattr(value, "__name__", ""))
def test_tables_hold_what_diffusers_takes(keys: ConfigKeys, kind: type) -> None:
    parameters = inspect.signature(kind.__init__).parameters
    assert sorted(names(keys)) == sorted(name for name in parameters if name != "self")
    for key, (values, default) in keys.fixed.items():
        assert default == parameters[key].default, key
        assert default in values or key in TRAINED
    if keys is VAE_KEYS:
        assert VAE_DEFAULTS.keys() == keys.used.keys()
        for key, value in VAE_DEFAULTS.items():
            assert value == (list(parameters[key].default) if isinstance(value, list) else parameters[key].default), key


@pytest.mark.parametrize(("keys", "kind"), CLASSES[:3], ids=lambda value: getattr(value, "__name__", ""))
def test_every_other_value_is_refused(keys: ConfigKeys, kind: type) -> None:
    whole = {key: TRAINED[key] for key in keys.fixed if key in TRAINED}
    keys.check(whole, "f")
    for key in keys.fixed:
        for other in (OTHER[key], 10**400):
            with pytest.raises(CheckpointError, match=rf"f describes what .* compute: {key} .*\(computed here: "):
                keys.check({**whole, key: other}, "f")
    for key in keys.levels or {}:
        with pytest.raises(CheckpointError, match=rf"{key} .* at every level"):
            keys.check({key: ["CogVideoXDownBlock3D", "DownBlock2D"]}, "f")


@pytest.mark.parametrize("keys", [TRANSFORMER_KEYS, VAE_KEYS, SCHEDULER_KEYS])
@pytest.mark.parametrize("value", ["x", [], {}, [["x"]], -1, 1.5e300, 10**400, float("nan"), {"a": 1}])
def test_values_of_a_wrong_type(keys: ConfigKeys, value: object) -> None:
    whole = {key: TRAINED[key] for key in keys.fixed if key in TRAINED}
    for key in keys.used:
        with pytest.raises(CheckpointError, match=rf"f: {key} is .*; expected is "):
            keys.check({**whole, key: value}, "f")


def test_an_unknown_key_is_named_unless_it_says_nothing() -> None:
    VAE_KEYS.check({"mirror_levels": False, "_class_name": "x"}, "f")
    with pytest.raises(CheckpointError, match=r"mirror_levels True \(not known here\)"):
        VAE_KEYS.check({"mirror_levels": True}, "f")
    with pytest.raises(CheckpointError, match=r"quantization_config .*not known here"):
        TRANSFORMER_KEYS.check({"quantization_config": {"load_in_4bit": True}}, "f")


def test_schedulers() -> None:
    check_scheduler({"_class_name": "CogVideoXDPMScheduler", **TRAINED}, "f")
    with pytest.raises(CheckpointError, match=r"describes a 'UniPCMultistepScheduler'; CogVideoX's schedulers are"):
        check_scheduler({"_class_name": "UniPCMultistepScheduler"}, "f")
    with pytest.raises(CheckpointError, match=r"prediction_type 'epsilon' \(computed here: 'v_prediction'\)"):
        check_scheduler({}, "f")  # diffusers' default
