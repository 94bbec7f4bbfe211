"""What to do with a run that has ended: the commands, with this run's files and places."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cogvideox import commands
from cogvideox.config.sample_command import sample_command
from cogvideox.config.schema import Config


def after_training(config: Config, folder: Path, processes: int, caption: str) -> str:
    """How to sample, export and continue, as lines to paste.

    folder: the run's. processes: of the run. caption: of a clip, to sample with where `args.eval_prompts` has none.
    """
    exported = folder / "diffusers"
    export = commands.tool("convert_weight_sat2hf", "--checkpoint", folder, "--output_path", exported, "--verify")
    iterations = 2 * config.train_args.train_iters
    return commands.next_steps(
        [
            ("sample videos with this checkpoint" + _image_hint(config), sample_command(config, folder, caption)),
            ("export it for diffusers", export),
            ("train longer", resume_command(config, folder, processes, iterations)),
        ]
    )


def resume_command(config: Config, folder: Path, processes: int, iterations: int | None = None) -> str:
    """The command that goes on with a run, as it was started. iterations: the new last one."""
    words = [commands.override("args.resume", folder)]
    if iterations is not None:
        words.append(commands.override("args.train_iters", iterations))
    kept = _without(config.overrides, {word.partition("=")[0] for word in words})
    return commands.train([*config.files, *kept, *words], processes)


def _image_hint(config: Config) -> str:
    asks = config.model.noised_image_input and not config.train_args.eval_prompts
    return " (write the name of your image behind @@)" if asks else ""


def _without(overrides: Iterable[str], keys: set[str]) -> list[str]:
    return [word for word in overrides if word.partition("=")[0] not in keys]
