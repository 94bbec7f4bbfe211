"""The whole way: a checkpoint sampled here, and exported and sampled by diffusers' pipeline, gives the same frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.model.video_diffusion import VideoDiffusion
from equivalence.pipelines import PROMPT, TEXT_LENGTH, compare, export, frames_theirs
from equivalence.pipelines import load_ours as load
from tiny_checkpoints import Checkpoints, write_checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def load_ours(checkpoints: Checkpoints, checkpoint: Path, strength: float = 1.0) -> VideoDiffusion:
    return load(checkpoints.family.model_yaml, checkpoint, f"args.lora_strength={strength}")


def export_base(checkpoints: Checkpoints, output: Path) -> Any:
    family = checkpoints.family
    return export(output, "--checkpoint", family.transformer, "--base", family.model_yaml)


@pytest.mark.parametrize("dynamic", [False, True])
def test_published_checkpoint(checkpoints: Checkpoints, tmp_path: Path, dynamic: bool) -> None:
    model = load_ours(checkpoints, checkpoints.family.transformer)
    compare(model, export_base(checkpoints, tmp_path / "out"), dynamic=dynamic)


def test_the_same_text_states(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = load_ours(checkpoints, checkpoints.family.transformer)
    pipeline = export_base(checkpoints, tmp_path / "out")
    theirs, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    torch.testing.assert_close(model.encode_text([PROMPT]), theirs, rtol=0, atol=1e-6)


def test_lora_run_beside_its_base_and_merged(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = load_ours(checkpoints, checkpoints.run)
    apart = export(tmp_path / "apart", "--checkpoint", checkpoints.run)
    without = frames_theirs(apart)
    apart.load_lora_weights(tmp_path / "apart")
    with_lora = compare(model, apart)
    assert (with_lora - without).abs().max() > 0.05, "the adapters must have a visible effect"
    compare(model, export(tmp_path / "merged", "--checkpoint", checkpoints.run, "--merge_lora"))


def test_strength_is_the_weight_of_the_adapter(checkpoints: Checkpoints, tmp_path: Path) -> None:
    pipeline = export(tmp_path / "apart", "--checkpoint", checkpoints.run)
    pipeline.load_lora_weights(tmp_path / "apart", adapter_name="mine")
    pipeline.set_adapters("mine", 0.5)
    compare(load_ours(checkpoints, checkpoints.run, strength=0.5), pipeline)
    pipeline.unload_lora_weights()
    compare(load_ours(checkpoints, checkpoints.run, strength=0.0), pipeline)
