"""What to type after a conversion: sampling and export of SAT folders, and diffusers in Python."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from cogvideox import commands
from cogvideox.config.load import load_config
from cogvideox.config.sample_command import sample_command
from cogvideox.errors import ConfigError
from cogvideox.released import generation_of
from cogvideox.weights.families import TransformerFacts
from cogvideox.weights.run_config import trained_config
from cogvideox.weights.sat_folder import find_states_file

_PROMPT = "a ship at sea"


def show(text: str) -> None:
    """Print the lines, if there are any."""
    if text:
        print(text)


def after_sat(output: Path, facts: TransformerFacts | None, origin: Path | None = None, *, lora: bool = False) -> str:
    """Lines to paste after a SAT folder was written; "" where nothing says how its model is built.

    facts: of the model; origin: the weight file it comes from. The settings are those beside the result, else those of
    the run that `origin` lies in, else those of the released model. lora: the result holds adapters only.
    """
    released = None if facts is None else facts.family
    found = trained_config(find_states_file(output)) or (None if origin is None else trained_config(origin))
    sampling = "" if found is None else _sample_like_a_run(found, output)
    if sampling:
        yaml = found
    elif facts is not None and released is not None:
        yaml = commands.ROOT / (released.lora_yaml if lora else released.yaml)
        sampling = _sample_released(yaml, facts, output)
    else:
        return ""
    assert yaml is not None, "both branches have one"
    words = ("--checkpoint", output, "--base", yaml, "--output_path", Path(f"{output}-diffusers"), "--verify")
    export = commands.tool("convert_weight_sat2hf", *words)
    return commands.next_steps([("sample videos with it", sampling), ("export it for diffusers", export)])


def after_diffusers(output: Path) -> str:
    """The Python of the model card that lies beside the weights, with the folder as seen from here; "" without one."""
    card = output / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    _, found, rest = text.partition("```python\n")
    if not found:
        return ""
    code = rest.partition("```")[0].replace(f'"{output.resolve().name}"', json.dumps(commands.shown(output)))
    return commands.next_steps([(f"in Python, as {commands.shown(card)} says it", code.strip())])


def after_comfyui(output: Path) -> str:
    """Where the files go that ComfyUI reads."""
    files = [commands.shown(file) for file in sorted(output.glob("*.safetensors"))]
    what = "give it to ComfyUI (write the place of yours)"
    return commands.next_steps([(what, shlex.join(["cp", *files, "ComfyUI/models/loras/"]))])


def _sample_like_a_run(config: Path, load: Path) -> str:
    """With the settings of a training run, which don't say the precision of sampling; "" if they can't be read."""
    try:
        trained = load_config([str(config)], [], "train", allow_unknown=True)
    except ConfigError:  # of another version, or without its data section
        return ""
    kind = trained.deepspeed.precision
    precision = [commands.override(f"args.{kind}", True)] if kind != "fp32" else []
    return " ".join([sample_command(trained, load, _PROMPT), *precision])


def _sample_released(yaml: Path, facts: TransformerFacts, load: Path) -> str:
    image = facts.in_channels > facts.out_channels
    inference = commands.ROOT / generation_of(facts.patch_size[0]).sampling_yaml(image)
    prompt = f"{_PROMPT}@@image.png" if image else _PROMPT
    words = [commands.override("args.load", load), commands.override("args.prompts", [prompt])]
    return commands.sample([commands.shown(yaml), commands.shown(inference), *words])
