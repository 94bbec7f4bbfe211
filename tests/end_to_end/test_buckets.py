"""One run over clips of many shapes: what is trained, the same on any number of processes and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

# Frames, height, width of the clips; at 8 fps they have so many frames.
CLIPS = [(10, 32, 48)] * 3 + [(10, 48, 32)] * 3 + [(6, 32, 48)] * 2 + [(10, 48, 48)] * 2
BUCKETS = "data.buckets=[[9,32,48],[9,48,32],[5,32,48],[5,32,32]]"
SIZES = "model.network_config.params.modules.pos_embed_config.params.resize=interpolate"
SAME_FP32 = 2e-5  # see test_train.py


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    generator = np.random.default_rng(0)
    for number, (frames, height, width) in enumerate(CLIPS):
        background = generator.integers(0, 255, (1, height, width, 3), dtype=np.uint8)
        tiny.write_clip(folder / f"{number}.mp4", np.tile(background, (frames, 1, 1, 1)))
        (folder / f"{number}.txt").write_text(f"a {list(tiny.COLOURS)[number % 4]} square moves left")
    return folder


def losses(summary: dict[str, Any]) -> list[float]:
    return [line["train_loss"] for line in tiny.read_lines(Path(summary["run_folder"])) if "train_loss" in line]


def test_shapes_of_every_kind_train_in_one_run(train, clips, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    common = (f"args.train_data=[{clips}]", BUCKETS, SIZES, "args.train_iters=6", "args.eval_split=0.3")
    with caplog.at_level("INFO", logger="cogvideox"):
        whole = train(*common, "deepspeed.gradient_accumulation_steps=2", save="whole")
    for text in (
        "10 of 10 videos usable",
        "bucket 9x32x48 (frames, height, width): 3 samples; the crop keeps 100%",
        "bucket 9x48x32 (frames, height, width): 3 samples; the crop keeps 100%",
        "bucket 5x32x48 (frames, height, width): 2 samples",
        "bucket 5x32x32 (frames, height, width): 2 samples",
    ):
        assert text in caplog.text
    assert len(losses(whole)) == 6 and all(np.isfinite(losses(whole)))
    # In other micro batches, and after a stop in the middle, every step has the same clips, noise and loss.
    split = train(*common, "deepspeed.train_micro_batch_size_per_gpu=1", "deepspeed.gradient_accumulation_steps=4")
    assert losses(split) == pytest.approx(losses(whole), rel=SAME_FP32)
    assert [loss for _, loss in split["valid_loss"]] == pytest.approx(
        [loss for _, loss in whole["valid_loss"]], rel=1e-4
    )
    part = train(
        *common[:3], "args.train_iters=3", "args.eval_split=0.3", "deepspeed.gradient_accumulation_steps=2", save="part"
    )
    resumed = train(
        *common, f"args.resume={part['run_folder']}", "deepspeed.gradient_accumulation_steps=2", save="part"
    )
    assert losses(resumed)[-3:] == losses(whole)[3:]


def test_more_clips_of_small_shapes_in_a_micro_batch(train, clips, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    with caplog.at_level("INFO", logger="cogvideox"):
        summary = train(
            f"args.train_data=[{clips}]", BUCKETS, SIZES, "args.train_iters=4", "data.tokens_per_micro_batch=18"
        )
    assert "by data.tokens_per_micro_batch it is 2 of 5x32x32, 1 of 5x32x48, 1 of 9x32x48, 1 of 9x48x32" in caplog.text
    assert len(losses(summary)) == 4


def test_clips_that_fit_into_no_bucket_are_named(train, clips, tmp_path):
    from cogvideox.errors import DataError

    with pytest.raises(
        DataError, match=r"none of the videos is usable[\s\S]*too small: 10 \(left out\)[\s\S]*max_upscale"
    ):
        train(f"args.train_data=[{clips}]", "data.buckets={shapes: [[5,64,96]], max_upscale: 1.2}", SIZES)
    with pytest.raises(DataError, match=r"holding out 0\.99 of 8 samples"):  # the two short ones are left out
        train(f"args.train_data=[{clips}]", "data.buckets=[[9,32,48]]", SIZES, "args.eval_split=0.99")
