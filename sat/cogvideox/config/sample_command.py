"""The command that samples as a run was trained, as text to paste."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cogvideox import commands
from cogvideox.config.check import model_files
from cogvideox.config.clip_sizes import patch_triple, read_sizes
from cogvideox.config.generation import released_sampling
from cogvideox.config.schema import Config, SampleArgs, TrainArgs
from cogvideox.config.sections import field_names
from cogvideox.released import generation_of

_CAPTION_CHARACTERS = 200
# Of both kinds of run, but the sampling command has its own.
_NOT_TAKEN_OVER = ("load", "mode", "seed")


def sample_command(config: Config, load: Path, caption: str) -> str:
    """The command that samples as the run was trained: its model files and overrides of the model, the settings of the
    model's generation, and the trained size where it is another."""
    files = [*model_files(config.files), commands.shown(commands.ROOT / inference_yaml(config))]
    both = {f"args.{key}" for key in field_names(TrainArgs) if key in field_names(SampleArgs)}
    both -= {f"args.{key}" for key in _NOT_TAKEN_OVER}
    kept = [word for word in config.overrides if word.startswith("model.") or word.partition("=")[0] in both]
    given = [commands.override("args.load", load), *(commands.override(*each) for each in _video(config))]
    return commands.sample([*files, *kept, *given, commands.override("args.prompts", [_prompt(config, caption)])])


def inference_yaml(config: Config) -> str:
    """The file, relative to the repository, that samples a model of this generation and input."""
    generation = generation_of(patch_triple(config.model.network_config["params"])[0])
    return generation.sampling_yaml(config.model.noised_image_input)


def _video(config: Config) -> Iterable[tuple[str, Any]]:
    """The keys of sampling that differ from the generation's when the videos are to be as the clips of training."""
    data = config.data
    assert data is not None, "a training configuration was checked"
    geometry = read_sizes(config.model.network_config["params"], config.model.first_stage_config["params"]).geometry
    trained = {
        "sampling_image_size": list(data.video_size),
        "sampling_num_frames": geometry.padded_frames(geometry.latent_frames(data.max_num_frames)),
        "sampling_fps": round(data.fps),
    }
    standard = released_sampling(geometry.patch_size[0])
    return [(f"args.{key}", value) for key, value in trained.items() if value != standard[key]]


def _prompt(config: Config, caption: str) -> str:
    if config.train_args.eval_prompts:
        return config.train_args.eval_prompts[0]
    text = " ".join(caption.split())
    if len(text) > _CAPTION_CHARACTERS:
        text = text[:_CAPTION_CHARACTERS].rsplit(" ", 1)[0]
    return f"{text}@@image.png" if config.model.noised_image_input else text
