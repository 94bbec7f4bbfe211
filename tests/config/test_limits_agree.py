"""What a check of the configuration allows is what the built parts take: the rules are written twice, because a
check imports neither torch nor SAT.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from cogvideox.config.clip_sizes import read_sizes
from cogvideox.config.limits import frame_count_problem
from cogvideox.config.targets import instantiate
from cogvideox.errors import ConfigError, ShapeError
from cogvideox.model.frame_padding import check_latent_frames

LEARNED = {"params": {"learnable_pos_embed": True}}
STRETCHED = {"params": {"resize": "interpolate"}}


@pytest.mark.parametrize("patch_frames", [1, 2])
def test_frame_counts(patch_frames: int) -> None:
    for latents in range(1, 60):
        try:
            check_latent_frames(latents, patch_frames)
            legal = True
        except ShapeError:
            legal = False
        assert (frame_count_problem(4 * (latents - 1) + 1, 4, patch_frames) == "") == legal, latents


@pytest.mark.parametrize("family", tiny.SIZES)
@pytest.mark.parametrize("positions", [{}, LEARNED, STRETCHED], ids=["plain", "learned", "stretched"])
@pytest.mark.parametrize("num_frames", [9, 81])
def test_largest_clip(family: str, positions: dict[str, Any], num_frames: int) -> None:
    node = tiny.network_node(family=family)
    params = node["params"]
    params["num_frames"], params["num_layers"] = num_frames, 1
    place = params["modules"]["pos_embed_config"]
    rotary = place["target"].endswith("RotaryPositionMixin")
    if positions == LEARNED and not rotary:
        pytest.skip("only rotary positions have a learned table")
    place["params"] = {**(place.get("params") or {}), **positions.get("params", {})}
    try:
        network = instantiate(node, dtype=torch.float32)
    except ConfigError:
        assert place["params"].get("learnable_pos_embed") and positions == STRETCHED
        return
    sizes = read_sizes(params, {})
    rows, height, width = network.mixins["pos_embed"].largest_grid
    patch = network.network.patch_size
    assert sizes.patch == patch
    real = rows * patch[0] - (patch[0] - 1)
    assert sizes.longest == 4 * (real - 1) + 1
    if sizes.largest is None:
        assert min(height, width) > 10**4
    else:
        assert sizes.largest == (height * patch[1] * 8, width * patch[2] * 8)
