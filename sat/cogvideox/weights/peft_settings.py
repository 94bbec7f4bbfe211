"""What peft's settings of a LoRA say: in `adapter_config.json`, or in the header that diffusers writes.

Every key of peft's LoraConfig is in one of the three tables here, and tests compare them with peft: used, without
effect on what a trained adapter computes, or refused unless it has the value that changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogvideox.errors import CheckpointError
from cogvideox.user_files import shown

USED = ("peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "rank_pattern", "alpha_pattern", "use_dora")
WITHOUT_EFFECT = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the matrices' names say it
    *("lora_dropout", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "runtime_config"),  # of training
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("megatron_config", "megatron_core", "ensure_weight_tying", "qalora_group_size"),
)
# Key -> the values with which a LoRA is the plain one, W + alpha / r * B A.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None, []),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
    "arrow_config": (None,),
    "use_bdlora": (None,),
}
# peft's ways to start. The first leave the base as it is: either B A is zero or only the adapter starts differently.
_STARTS_BESIDE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# These take the start out of the base: on the original one the adapter adds what the base still has.
_STARTS_IN_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")
_EMPTY: tuple[Any, ...] = (None, False, [], {}, "")


def check_settings(config: Mapping[str, Any], source: str) -> None:
    """Whether an adapter with these settings computes W + scale * B A on the released weights W.

    Raises: CheckpointError that names the first setting with which it does not, or which is not known here.
    """
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{source} is a {shown(config['peft_type'])} of peft; only LoRA (LORA) is read")
    for key in ("use_dora", "use_rslora"):
        if config.get(key, False) not in (False, True, None):
            raise CheckpointError(f"{source}: {key} is {shown(config[key])}, true or false is expected")
    if config.get("use_dora"):
        raise CheckpointError(f"{source} is a DoRA, which SAT has no place for: merge it into its model instead")
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if patterns:
        raise CheckpointError(
            f"{source}: its modules differ ({patterns[0]}); SAT's LoRA has one rank and alpha for all"
        )
    _check_start(config.get("init_lora_weights", True), source)
    for key, value in config.items():
        if key in PLAIN and not any(value is plain or value == plain for plain in PLAIN[key]):
            raise CheckpointError(
                f"{source}: {key} is {shown(value)}, which is not the plain LoRA that SAT has: merge it into its model"
            )
        if key not in PLAIN and key not in USED + WITHOUT_EFFECT and "." not in key and value not in _EMPTY:
            raise CheckpointError(
                f"{source}: {key} is {shown(value)}, a setting of peft that is not known here: it may change what the "
                "adapter computes; merge it into its model instead"
            )


def _check_start(start: object, source: str) -> None:
    name = start.lower() if isinstance(start, str) else start
    if isinstance(name, str) and name.startswith(_STARTS_IN_BASE):
        convert = (
            "the base was quantised: merge the adapter into that base with peft"
            if name == "loftq"
            else "convert it with peft, where it was trained: save the untrained adapter with "
            "init_lora_weights=True, then save_pretrained(..., path_initial_model_for_weight_conversion=its folder)"
        )
        raise CheckpointError(
            f"{source}: init_lora_weights is {start!r}, which changed the base as well: on the original weights this "
            f"adapter is wrong. {convert[0].upper()}{convert[1:]}"
        )
    if not isinstance(name, str | bool | None) or name not in _STARTS_BESIDE_BASE:
        raise CheckpointError(
            f"{source}: init_lora_weights is {shown(start)}, which is not known here: it may have changed the base"
        )
