"""Preview videos of training runs. (Held-out losses: tests/end_to_end.)"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.model.build import build_model
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.batches import VideoFormat
from cogvideox.sampling.prompts import Prompt
from cogvideox.sampling.run import build_sampler
from cogvideox.training.evaluation import sample_prompts

ALONE = ProcessGroups(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
FORMAT = VideoFormat(num_latent_frames=3, height=tiny.HEIGHT, width=tiny.WIDTH, fps=8)


def test_a_preview_of_nan_is_left_out_and_said_so(
    family_of: tiny.FamilyOf, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is not lost over a video, and a black one would hide what happened."""
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    config = load_config([str(family_of("2b").model_yaml)], [], "train", partial=True).model
    model = build_model(config, device="cpu", dtype=torch.float32, seed=0).eval().requires_grad_(False)
    sampler = build_sampler(config.sampler_config, 1)
    sample_prompts(model, sampler, [Prompt("a square")], FORMAT, tmp_path, ALONE)
    assert len(list(tmp_path.glob("*.mp4"))) == 1
    next(model.transformer.parameters()).fill_(torch.nan)
    sample_prompts(model, sampler, [Prompt("a circle")], FORMAT, tmp_path, ALONE)
    assert len(list(tmp_path.glob("*.mp4"))) == 1
    assert "no preview: the video of 'a circle' came to NaN" in caplog.text
