"""What to do after sampling: the commands, with this run's files and places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogvideox import commands
from cogvideox.config.schema import Config
from cogvideox.sampling.jobs import TIME_MARK, SampleJob
from cogvideox.weights.run_config import trained_config
from cogvideox.weights.sat_folder import find_states_file


def after_sampling(config: Config, jobs: Sequence[SampleJob], processes: int) -> str:
    """Sampling once more with other noise and, for the checkpoint of a run, its export, as lines to paste."""
    steps = [("sample once more, with other noise", _once_more(config, jobs, processes))]
    assert config.args.load, "the configuration was checked"
    load = Path(config.args.load).expanduser()
    if trained_config(find_states_file(load)) is not None:
        run = load if load.is_dir() else load.parent
        words = ("--checkpoint", load, "--output_path", run / "diffusers", "--verify")
        if not (run / "diffusers").exists():
            steps.append(("export this checkpoint for diffusers", commands.tool("convert_weight_sat2hf", *words)))
    return commands.next_steps(steps)


def _once_more(config: Config, jobs: Sequence[SampleJob], processes: int) -> str:
    args = config.sample_args
    seed = args.seed + args.num_samples
    words = [commands.override("args.seed", seed)]
    if TIME_MARK not in args.output_dir:
        words.append(commands.override("args.output_dir", Path(f"{args.output_dir.rstrip('/')}-{seed}")))
    if not args.prompts and args.input_type == "cli":  # typed in the terminal
        typed = dict.fromkeys(job.prompt if job.image is None else f"{job.prompt}@@{job.image}" for job in jobs)
        words.append(commands.override("args.prompts", list(typed)))
    given = {word.partition("=")[0] for word in words}
    kept = [word for word in config.overrides if word.partition("=")[0] not in given]
    return commands.sample([*config.files, *kept, *words], processes)
