"""Whole training runs on the tiny family, in this process: what they leave behind and what must not change a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

FULL = ("model.network_config.params.modules.lora_config=null", "model.not_trainable_prefixes=[]")
BF16 = "deepspeed.bf16.enabled=true"
# Two fp32 runs that differ in the order of sums only: a few units in the last place (1.2e-7) per step,
# amplified a little
# by each update with lr 1e-2.
SAME_FP32 = 2e-5


def losses(summary: dict[str, Any]) -> list[float]:
    lines = tiny.read_lines(Path(summary["run_folder"]))
    return [line["train_loss"] for line in lines if "train_loss" in line]


def content(summary: dict[str, Any]) -> dict[str, Any]:
    return torch.load(Path(summary["checkpoint"]) / "mp_rank_00_model_states.pt", weights_only=True)


def test_a_lora_run_leaves_what_its_users_need(train, family):
    summary = train("args.eval_split=0.25", "args.eval_prompts=['a red square moves up']", "args.save_interval=3")
    folder = Path(summary["run_folder"])
    assert (folder / "latest").read_text() == "4" and (folder / "3").is_dir() and (folder / "4").is_dir()
    saved = content(summary)
    assert len(saved["module"]) == 16 and all(".matrix_" in name for name in saved["module"])
    assert saved["cogvideox"]["lora"] == {"r": 4, "alpha": 4.0, "layers": 2}
    base = saved["cogvideox"]["base"]
    assert base["path"] == str(family.transformer / "1" / "mp_rank_00_model_states.pt")
    assert len(base["sha256"]) == 64
    assert (folder / "training_config.yaml").is_file() and (folder / "model_config.json").is_file()
    assert [step for step, _ in summary["valid_loss"]] == [0, 4]
    for step in ("0", "4"):
        assert (Path(summary["samples"][step]) / "0_a_red_square_moves_up.mp4").stat().st_size > 500
    assert summary["trainable_parameters"] == 4096 and summary["lora_scale"] == 1.0
    assert 1e-4 < summary["lora_update"] < 10
    assert summary["seconds_per_step"] > 0 and summary["peak_memory_bytes"] > 1e8
    assert (folder / "summary.json").is_file()


def test_what_is_printed(train, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    with caplog.at_level("INFO", logger="cogvideox"):
        summary = train("args.train_iters=1", "deepspeed.gradient_accumulation_steps=2")
    text = caplog.text
    assert f"saved {summary['checkpoint']}" in text and summary["training_clips"] == 8
    assert f"for the original one: python tools/export_original.py {summary['run_folder']} --output_path" in text
    assert "8 of 8 videos usable" in text
    assert "trainable parameters: 4,096 of 173,952 (2.35 %); LoRA rank 4, scale 1 (alpha / rank)" in text
    assert "effective batch 4 = 2 per process x 2 accumulated x 1 processes" in text
    assert "lr at step 1: 0.01; mean 0.01" in text and "16 new LoRA matrices" in text


@pytest.mark.parametrize("method", [(), FULL], ids=["lora", "full"])
def test_zero_stages_do_not_change_the_losses(train, method):
    runs = [losses(train(*method, f"deepspeed.zero_optimization.stage={stage}")) for stage in (0, 1, 2)]
    assert runs[1] == pytest.approx(runs[0], rel=SAME_FP32)
    assert runs[2] == pytest.approx(runs[0], rel=SAME_FP32)


@pytest.mark.parametrize("method", [(), FULL], ids=["lora", "full"])
def test_bf16_follows_fp32(train, method):
    exact = losses(train(*method))
    # bf16 keeps 8 bits: 0.4 % per operation, averaged over the elements of a loss near 3.
    for stage in (0, 2):
        rounded = losses(train(*method, BF16, f"deepspeed.zero_optimization.stage={stage}"))
        assert rounded == pytest.approx(exact, rel=0.05) and rounded != exact


def test_accumulation_and_activation_checkpointing_do_not_change_the_losses(train):
    whole = losses(train("deepspeed.train_micro_batch_size_per_gpu=4"))
    for micro, accumulation in ((2, 2), (1, 4)):
        split = losses(
            train(
                f"deepspeed.train_micro_batch_size_per_gpu={micro}",
                f"deepspeed.gradient_accumulation_steps={accumulation}",
                "args.checkpoint_activations=true",
            )
        )
        assert split == pytest.approx(whole, rel=SAME_FP32)


def test_full_fine_tuning_without_a_rate_returns_the_weights_it_loaded(train, family):
    summary = train(*FULL, "deepspeed.optimizer.params.lr=0", "args.train_iters=2", "args.eval_split=0.25")
    before, after = tiny.read_states(family.transformer), content(summary)["module"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert content(summary)["cogvideox"]["base"] is None
    # The weights have not moved, so neither has the held-out loss: it means the same at every evaluation.
    (_, first), (_, last) = summary["valid_loss"]
    assert first == last
    # Nor with other batches or another seed of the run: only the order of the sum differs.
    again = train(
        *FULL, "args.train_iters=1", "args.eval_split=0.25", "args.eval_batch_size=2", "args.seed=7", save="again"
    )
    assert again["valid_loss"][0][1] == pytest.approx(first, rel=1e-6)


def test_a_saved_run_loads_with_the_same_outputs(train, family):
    """LoRA at rate 0 with everything saved: the base is bit-equal below `.original.`, adapters at their start."""
    whole = content(train("args.save_full=true", "deepspeed.optimizer.params.lr=0", "args.train_iters=2"))
    assert whole["cogvideox"]["lora"]["r"] == 4 and whole["cogvideox"]["base"] is None
    base = tiny.read_states(family.transformer)
    plain = {name.replace(".original.", "."): each for name, each in whole["module"].items()}
    assert all(torch.equal(plain[name], base[name]) for name in base)
    assert len(plain) == len(base) + 16


def test_training_moves_only_what_trains(train, family):
    changed = train(*FULL, "args.train_iters=2")
    before, after = tiny.read_states(family.transformer), content(changed)["module"]
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == ["model.diffusion_model.mixins.pos_embed.pos_embedding"]  # the fixed table


def test_only_the_newest_checkpoints_are_kept(train):
    summary = train("args.save_interval=1", "args.keep_last=2")
    folder = Path(summary["run_folder"])
    assert sorted(each.name for each in folder.iterdir() if each.name.isdigit()) == ["3", "4"]


def test_runs_that_start_in_the_same_minute_have_folders_of_their_own(train):
    folders = {train("args.train_iters=1")["run_folder"] for _ in range(3)}
    assert len(folders) == 3


def test_a_run_that_diverges_stops_and_saves_nothing(train, tmp_path):
    from cogvideox.training.metrics import TrainingDiverged

    with pytest.raises(TrainingDiverged, match=r"steps in a row \(at step \d+\); stopped"):
        train(*FULL, "deepspeed.optimizer.params.lr=1e30", "args.train_iters=40")
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "latest").exists()


def test_weights_that_are_not_finite_are_never_saved(train, tmp_path, monkeypatch):
    from cogvideox.errors import CheckpointError
    from cogvideox.training.engine import TrainEngine

    step = TrainEngine.step

    def poison(self, number, batches):
        result = step(self, number, batches)
        if number == 3:
            next(p for p in self.module.parameters() if p.requires_grad).data.fill_(float("nan"))
        return result

    monkeypatch.setattr(TrainEngine, "step", poison)
    with pytest.raises(CheckpointError, match="not saved: NaN or infinity in"):
        train("args.save_interval=1", "args.train_iters=4")
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(each.name for each in folder.iterdir() if each.name[-1].isdigit()) == ["1", "2"]
    assert (folder / "latest").read_text() == "2"
