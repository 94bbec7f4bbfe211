"""Checking a configuration file by itself: a model file has no data, a training file no model."""

from __future__ import annotations

from collections.abc import Sequence

from cogvideox.config.load import load_config, read_layers
from cogvideox.config.report import Report
from cogvideox.config.schema import Kind, SampleArgs, TrainArgs
from cogvideox.config.sections import field_names


def infer_kinds(base: Sequence[str]) -> list[Kind]:
    """The kinds of run that the last file that says so is for; both when none holds a key of one kind only.

    Raises:
        ConfigError: a file can't be read.
    """
    for file in reversed(base):
        kinds = _kinds_of(file)
        if kinds:
            return kinds
    return ["train", "sample"]


def model_files(files: Sequence[str]) -> list[str]:
    """Those of the files that say something of the model, with their includes.

    Raises:
        ConfigError: a file can't be read.
    """
    report = Report()
    found = [file for file in files if any(tree.child("model") is not None for tree in read_layers([file], [], report))]
    report.raise_if_any()
    return found


def _kinds_of(file: str) -> list[Kind]:
    report = Report()
    trees = read_layers([file], [], report)
    report.raise_if_any()
    sections = {name for tree in trees for name in tree.value}
    args = [node for tree in trees if (node := tree.child("args")) is not None and isinstance(node.value, dict)]
    keys = {key for node in args for key in node.value}
    train, sample = set(field_names(TrainArgs)), set(field_names(SampleArgs))
    kinds: list[Kind] = []
    if keys & (train - sample) or "data" in sections:
        kinds.append("train")
    if keys & (sample - train):
        # A model file says with which precision one samples, and with which one trains.
        kinds = ["train", "sample"] if "deepspeed" in sections else [*kinds, "sample"]
    return kinds


def check_alone(file: str, kinds: Sequence[Kind] | None = None, *, allow_unknown: bool = False) -> list[Kind]:
    """Check what one file (with its includes) says; what it leaves to other files may be missing.

    Returns: the kinds of run that it was checked for.

    Raises:
        ConfigError: with every problem found.
    """
    found = list(kinds or infer_kinds([file]))
    for kind in found:
        load_config([file], [], kind, allow_unknown, partial=True)
    return found
