"""The config.json of a T5 encoder: the sizes and choices that it is built from, and nothing else that it may say.

Names of code (an attention implementation from the hub, auto_map) have no effect: only the keys here are handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogvideox.errors import CheckpointError
from cogvideox.user_files import shown

# Key -> T5's default, which old files leave out.
SIZES: Mapping[str, int] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}
# T5 1.0 has relu, 1.1 gated-gelu.
FEED_FORWARDS = ("relu", "gelu", "silu", "gated-gelu", "gated-relu", "gated-silu")
_LARGEST = 2**20


def t5_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What transformers' T5Config is made of. source: the file, for messages.

    Raises: CheckpointError for another kind of model, a quantised one, and values of a wrong type or out of range.
    """
    family = config.get("model_type")
    if family != "t5":
        raise CheckpointError(f"{source} describes a {shown(family)} model, a 't5' model is needed")
    if config.get("quantization_config"):
        raise CheckpointError(f"{source}: quantised T5 weights are not read: take the plain ones")
    settings: dict[str, Any] = {}
    for key, default in SIZES.items():
        value = config.get(key, default)
        if type(value) is not int or not 1 <= value <= _LARGEST:
            raise CheckpointError(f"{source}: {key} is {shown(value)}, a number from 1 to {_LARGEST} is expected")
        settings[key] = value
    buckets, distance = settings["relative_attention_num_buckets"], settings["relative_attention_max_distance"]
    if buckets < 4 or distance <= buckets // 4:
        raise CheckpointError(
            f"{source}: relative_attention_num_buckets {buckets} and relative_attention_max_distance {distance} don't "
            "fit: T5 has 32 and 128"
        )
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise CheckpointError(f"{source}: layer_norm_epsilon is {shown(epsilon)}, a number such as 1e-06 is expected")
    feed_forward = config.get("feed_forward_proj", "relu")
    if feed_forward not in FEED_FORWARDS:
        raise CheckpointError(
            f"{source}: feed_forward_proj is {shown(feed_forward)}; known are {', '.join(FEED_FORWARDS)}"
        )
    return {**settings, "layer_norm_epsilon": float(epsilon), "feed_forward_proj": feed_forward}
