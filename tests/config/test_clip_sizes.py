"""The largest clip that a check of the configuration allows is the largest that the built network has positions for."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from cogvideox.config.clip_sizes import read_sizes
from cogvideox.config.targets import instantiate
from cogvideox.errors import ConfigError

LEARNED = {"params": {"learnable_pos_embed": True}}
STRETCHED = {"params": {"resize": "interpolate"}}


# Only rotary positions have a learned table.
KINDS = [
    pytest.param(family, positions, id=f"{family}-{name}")
    for name, positions in {"plain": {}, "learned": LEARNED, "stretched": STRETCHED}.items()
    for family in tiny.SIZES
    if name != "learned" or tiny.POSITIONS[family][0] == "RotaryPositionMixin"
]


@pytest.mark.parametrize(("family", "positions"), KINDS)
@pytest.mark.parametrize("num_frames", [9, 81])
def test_largest_clip(family: str, positions: dict[str, Any], num_frames: int) -> None:
    node = tiny.network_node(family=family)
    params = node["params"]
    params["num_frames"], params["num_layers"] = num_frames, 1
    place = params["modules"]["pos_embed_config"]
    place["params"] = {**(place.get("params") or {}), **positions.get("params", {})}
    try:
        network = instantiate(node, dtype=torch.float32)
    except ConfigError:
        assert place["params"].get("learnable_pos_embed") and positions == STRETCHED
        return
    sizes = read_sizes(params, {})
    rows, height, width = network.mixins["pos_embed"].largest_grid
    patch = network.network.patch_size
    assert sizes.geometry.patch_size == patch
    real = rows * patch[0] - (patch[0] - 1)
    assert sizes.longest == 4 * (real - 1) + 1
    if sizes.largest is None:
        assert min(height, width) > 10**4
    else:
        assert sizes.largest == (height * patch[1] * 8, width * patch[2] * 8)
