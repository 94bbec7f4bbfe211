"""What the demo says and shows at its end."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import yaml
from cogvideox import commands

from demo_recipe.before_after import write_before_after


def before_after(run: Path) -> Path:
    """A picture of the previews at both ends of the run."""
    samples = json.loads((run / "summary.json").read_text())["samples"]
    config = yaml.safe_load((run / "training_config.yaml").read_text(encoding="utf-8"))
    return write_before_after(run, samples, config["args"]["eval_prompts"])


def summary_text(run: Path, exported: Path, sheet: Path, seconds: dict[str, float]) -> str:
    """What a person wants to know at the end."""
    summary = json.loads((run / "summary.json").read_text())
    (first, loss_before), (last, loss_after) = summary["valid_loss"][0], summary["valid_loss"][-1]
    change = f"{loss_after / loss_before - 1:+.0%}"
    load = commands.override("args.load", run)
    sample = commands.sample(["configs/demo_lora.yaml", "configs/demo_inference.yaml", load])
    board = shlex.join([commands.shown(Path(sys.executable).with_name("tensorboard")), "--logdir", commands.shown(run)])
    steps = commands.next_steps([("sample with this checkpoint", sample), ("see the curves and previews", board)])
    times = ", ".join(f"{name.split(',')[0]} {value:.0f} s" for name, value in seconds.items())
    return f"""
==> summary
    held-out loss   {loss_before:.4f} at step {first}, {loss_after:.4f} at step {last} ({change})
    training loss   {summary["train_loss_first"]:.4f} -> {summary["train_loss_last"]:.4f}
    speed           {summary["seconds_per_step"]:.2f} s a step, {summary["tokens_per_second"]:.0f} tokens/s
    trained         {summary["trainable_parameters"]:,} parameters, LoRA scale {summary["lora_scale"]:g}
    took            {times}; {sum(seconds.values()):.0f} s together
    run folder      {run}
    before, after   {sheet}
    diffusers       {exported}

{steps}

The same on CogVideoX-2B, with your own clips: README.md, "Your own clips".
"""
