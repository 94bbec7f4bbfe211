"""Files and folders that a configuration names: what is not there, or is something else, is reported before the build.

For weights the report says how to get them, once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cogvideox import commands
from cogvideox.config.clip_sizes import patch_triple
from cogvideox.config.report import Origin, Report
from cogvideox.config.schema import Config, SampleArgs, data_entries
from cogvideox.config.tree import Node, find
from cogvideox.user_files import is_possible, shown, shown_path

_VAE = "model.first_stage_config.params.ckpt_path"
_TEXT = "model.conditioner_config.params.encoder.params.model_dir"
_WEIGHTS = ("args.load", _VAE, _TEXT)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OWNERS = ("thudm", "zai-org")
# By width of the network, latent frames in a patch and image input.
_HUB_MODELS = {
    (1920, 1, False): "THUDM/CogVideoX-2b",
    (3072, 1, False): "THUDM/CogVideoX-5b",
    (3072, 1, True): "THUDM/CogVideoX-5b-I2V",
    (3072, 2, False): "THUDM/CogVideoX1.5-5B",
    (3072, 2, True): "THUDM/CogVideoX1.5-5B-I2V",
}


def check_paths(config: Config, root: Node, report: Report) -> None:
    """Every path that the run reads must exist, and the one that it writes must be possible.

    Names that a hub could know are left to the text encoder.
    """
    is_sampling = isinstance(config.args, SampleArgs)
    written = ("args.output_dir", config.args.output_dir) if is_sampling else ("args.save", config.args.save)
    missing: dict[str, str] = {}
    for path, value in [written, *_named_paths(config)]:
        if not is_possible(value):
            _error(path, f"{shown(value)} is no name that a file or folder can have", root, report)
        elif path == written[0]:
            continue
        elif "{" in value:
            _error(path, f"{value!r} is still a placeholder: put the real path here", root, report)
        elif not os.path.exists(os.path.expanduser(value)):
            missing[path] = value
        elif path == "args.load" and (source := _diffusers_source(Path(os.path.expanduser(value)))):
            text = f"{value} holds weights in diffusers' layout, and this takes SAT's; convert them once"
            _error(path, f"{text}: {_conversion(str(source))}", root, report)
    absent = [path for path in _WEIGHTS if path in missing]
    if len(absent) > 1:
        names = ", ".join(f"{shown_path(missing.pop(path))} ({path})" for path in absent)
        text = f"the model's weights are not there: {names}; {_how_to_get_weights(config)}"
        _error(absent[0], text, root, report)
    for path, value in missing.items():
        hint = f"; {_how_to_get_weights(config)}" if path in (_VAE, _TEXT) else ""
        if path == "args.load" and _is_hub_name(value):
            hint = f"; as a name on Hugging Face it is converted once: {_conversion(value)}"
        _error(path, f"no such file or folder: {shown_path(value)}{hint}", root, report)


def _error(path: str, text: str, root: Node, report: Report) -> None:
    node = find(root, path)
    report.error(Origin("", None, path) if node is None else node.origin, text)


def _how_to_get_weights(config: Config) -> str:
    """One command, where the model is a published one; where to write other places, in any case."""
    load, network = config.args.load or "", config.model.network_config["params"]
    key = (network.get("hidden_size", 0), patch_triple(network)[0], config.model.noised_image_input)
    name = load if _is_hub_name(load) else _HUB_MODELS.get(key)
    elsewhere = "set these keys to where they are"
    if name is None:
        return elsewhere
    folder = Path(load)
    target = folder.parent if folder.name == "transformer" and folder.parent.name else None
    command = _conversion(name, target)
    return f"{elsewhere}, or download and convert them, which writes a model.yaml with their places: {command}"


def _conversion(source: str, output: Path | None = None) -> str:
    """The command that makes SAT weights of a folder or a hub name. Its last lines say how to go on."""
    target = Path(f"{Path(source).name}-sat") if output is None else output
    words = [source] if _HUB_NAME.fullmatch(source) and not Path(source).exists() else [Path(source)]
    return commands.tool("convert_weight_hf2sat", *words, "--output_path", target)


def _is_hub_name(name: str) -> bool:
    """Of one of the published models, or of a copy that keeps their name."""
    owner, _, model = name.lower().partition("/")
    return bool(_HUB_NAME.fullmatch(name)) and (owner in _OWNERS or model.startswith("cogvideox"))


def _diffusers_source(place: Path) -> Path | None:
    """The pipeline, or the lone model, in diffusers' layout that `place` is or lies in; None for anything else."""
    folder = place if place.is_dir() else place.parent
    is_part = (folder / "config.json").is_file() and any(folder.glob("diffusion_pytorch_model*.safetensors*"))
    for each in (folder, folder.parent) if is_part else (folder,):
        if (each / "model_index.json").is_file():
            return each
    return folder if is_part else None


def _named_paths(config: Config) -> list[tuple[str, str]]:
    found: list[tuple[str, str | None]] = []
    load = config.args.load
    is_needed = isinstance(config.args, SampleArgs) or config.args.resume is None  # a run that goes on has its own
    # A name that is not here and has no slash may be an experiment's, or `latest`: weights.runs finds what it means.
    if load and is_needed and (any(each in load for each in "/{") or os.path.exists(load)):
        found.append(("args.load", load))
    if isinstance(config.args, SampleArgs):
        if config.args.input_type == "txt" and not config.args.prompts:
            found.append(("args.input_file", config.args.input_file))
    else:
        for key, written in (("args.train_data", config.args.train_data), ("args.valid_data", config.args.valid_data)):
            for entry in data_entries(written):
                is_elsewhere = entry.layout == "hub" or any(
                    each in entry.path for each in "{*?["
                )  # the data room says it
                found += [(key, None if is_elsewhere else entry.path), (key, entry.root)]
        if config.args.resume != "latest":
            found.append(("args.resume", config.args.resume))
    found.append(("args.base_model", config.args.base_model))
    found.append((_VAE, config.model.first_stage_config["params"].get("ckpt_path")))
    encoder = config.model.conditioner_config["params"].get("encoder") or {}
    folder = encoder.get("params", {}).get("model_dir")
    if folder and not _could_be_hub_name(folder):
        found.append((_TEXT, folder))
    return [(path, value) for path, value in found if value]


def _could_be_hub_name(name: str) -> bool:
    """`t5-small` or `google/t5-v1_1-xxl`; not a path whose first folder is here."""
    if Path(name).parts and Path(Path(name).parts[0]).is_dir():
        return False
    return name[0] not in "./~" and name.count("/") <= 1 and "{" not in name
