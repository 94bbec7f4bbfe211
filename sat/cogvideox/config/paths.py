"""Files and folders that a configuration names: those that don't exist are reported before the build."""

from __future__ import annotations

import os
from pathlib import Path

from cogvideox.config.report import Origin, Report
from cogvideox.config.schema import Config, SampleArgs
from cogvideox.config.tree import Node, find
from cogvideox.user_files import is_possible, shown, shown_path


def check_paths(config: Config, root: Node, report: Report) -> None:
    """Every path that the run reads must exist, and the one that it writes must be possible.

    Names that a hub could know are left to the text encoder.
    """
    is_sampling = isinstance(config.args, SampleArgs)
    written = ("args.output_dir", config.args.output_dir) if is_sampling else ("args.save", config.args.save)
    for path, value in [written, *_named_paths(config)]:
        if not is_possible(value):
            text = f"{shown(value)} is no name that a file or folder can have"
        elif path == written[0]:
            continue
        elif "{" in value:
            text = f"{value!r} is still a placeholder: put the real path here"
        elif os.path.exists(os.path.expanduser(value)):
            continue
        else:
            text = f"no such file or folder: {shown_path(value)}"
        node = find(root, path)
        report.error(Origin("", None, path) if node is None else node.origin, text)


def _named_paths(config: Config) -> list[tuple[str, str]]:
    found: list[tuple[str, str | None]] = []
    load = config.args.load
    # A name without a slash may be an experiment's, or `latest`: weights.runs finds what it means. A run that goes on
    # has weights of its own.
    if (
        load
        and any(each in load for each in "/{")
        and (isinstance(config.args, SampleArgs) or config.args.resume is None)
    ):
        found.append(("args.load", load))
    if isinstance(config.args, SampleArgs):
        if config.args.input_type == "txt" and not config.args.prompts:
            found.append(("args.input_file", config.args.input_file))
    else:
        found += [("args.train_data", folder) for folder in config.args.train_data]
        found += [("args.valid_data", folder) for folder in config.args.valid_data]
        if config.args.resume != "latest":
            found.append(("args.resume", config.args.resume))
    found.append(("args.base_model", config.args.base_model))
    found.append(
        (
            "model.first_stage_config.params.ckpt_path",
            config.model.first_stage_config["params"].get("ckpt_path"),
        )
    )
    encoder = config.model.conditioner_config["params"].get("encoder") or {}
    folder = encoder.get("params", {}).get("model_dir")
    if folder and not _could_be_hub_name(folder):
        found.append(("model.conditioner_config.params.encoder.params.model_dir", folder))
    return [(path, value) for path, value in found if value]


def _could_be_hub_name(name: str) -> bool:
    """`t5-small` or `google/t5-v1_1-xxl`; not a path whose first folder is here."""
    if Path(name).parts and Path(Path(name).parts[0]).is_dir():
        return False
    return name[0] not in "./~" and name.count("/") <= 1 and "{" not in name
