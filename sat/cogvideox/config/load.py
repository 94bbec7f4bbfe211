"""`--base a.yaml b.yaml key=value` to one checked Config.

Later files win key by key and the command line comes last. A file may start from others with `include:` (one
name or a list, relative to the file): they are read first. All mistakes are reported at once, with place.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from cogvideox.config.consistency import check_consistency
from cogvideox.config.deepspeed_section import read_deepspeed
from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.config.familiar_words import meant
from cogvideox.config.findings import Findings
from cogvideox.config.layers import translate_layers
from cogvideox.config.paths import check_paths
from cogvideox.config.report import Origin, Report, suggestion
from cogvideox.config.schema import Config, DataConfig, Kind, ModelConfig, SampleArgs, TrainArgs
from cogvideox.config.sections import field_names, read_model, read_section, section_of
from cogvideox.config.shared_keys import settle_shared_keys
from cogvideox.config.tree import Node, merge, read_override, read_yaml, resolve_interpolations
from cogvideox.errors import ConfigError
from cogvideox.log import get_logger
from cogvideox.user_files import shown_path

_MAX_FILES = 100
SECTIONS = ("args", "model", "data", "deepspeed")
_logger = get_logger(__name__)


@dataclass(frozen=True)
class CommandLine:
    """What the scripts are asked to do. `local_rank` is None outside of a launcher."""

    kind: Kind
    base: tuple[str, ...]
    overrides: tuple[str, ...]
    check: bool
    allow_unknown: bool
    debug: bool
    local_rank: int | None

    def load(self) -> Config:
        """The checked configuration, with the existence of its paths. Raises: ConfigError."""
        return load_config(
            list(self.base),
            list(self.overrides),
            self.kind,
            allow_unknown=self.allow_unknown,
            check_files=True,
        )


def parse_cli(argv: Sequence[str], kind: Kind) -> CommandLine:
    """Read `--base FILES key=value --seed N --check --allow-unknown --debug --local_rank N`, in any order.

    Raises:
        ConfigError: an unknown flag, or no file.
    """
    parser = _Parser(kind)
    parser.add_argument("--base", nargs="*", default=[], metavar="YAML", help="files; later ones win key by key")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="win over the files")
    parser.add_argument("--seed", type=int, help="the same as args.seed=N")
    parser.add_argument("--check", action="store_true", help="check the configuration and stop")
    parser.add_argument("--allow-unknown", "--allow_unknown", action="store_true", help="unknown keys only warn")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by launchers")
    parsed = parser.parse_intermixed_args(list(argv))
    words = [*parsed.base, *parsed.overrides]
    base = [word for word in words if "=" not in word or os.path.isfile(word)]
    overrides = [word for word in words if word not in base]
    if not base:
        raise ConfigError(f"no configuration given: {parser.prog} --base configs/a.yaml [b.yaml ...] [key=value ...]")
    if parsed.seed is not None:
        overrides.append(f"args.seed={parsed.seed}")
    local_rank = parsed.local_rank
    if local_rank is None and os.environ.get("LOCAL_RANK"):
        local_rank = int(os.environ["LOCAL_RANK"])
    return CommandLine(
        kind, tuple(base), tuple(overrides), parsed.check, parsed.allow_unknown, parsed.debug, local_rank
    )


def load_config(
    base: Sequence[str],
    overrides: Sequence[str],
    kind: Kind,
    allow_unknown: bool = False,
    *,
    check_files: bool = False,
    partial: bool = False,
) -> Config:
    """Read, merge, translate published names, check, and log what was noticed.

    Args:
        check_files: also report the paths in the configuration that don't exist.
        partial: the files are only a part of a configuration (a model file alone); what is missing is fine.

    Raises:
        ConfigError: with every problem found.
    """
    report = Report(allow_unknown, kind)
    trees = read_layers(base, overrides, report)
    report.raise_if_any()  # nothing more can be said about half a tree
    root, published = translate_layers(trees, report)
    _check_sections(root, report)
    config = _read_sections(root, kind, report, published=published, partial=partial)
    if check_files:
        check_paths(config, root, report)
    report.raise_if_any()
    if (os.environ.get("RANK") or "0") == "0":  # every process reads the same files
        for text in report.warnings:
            _logger.warning("%s", text)
        for text in report.notices:
            _logger.info("%s", text)
    return dataclasses.replace(
        config,
        warnings=tuple(report.warnings),
        notices=tuple(report.notices),
        files=tuple(base),
        overrides=tuple(overrides),
    )


def read_trained_model(file: Path) -> ModelConfig:
    """The section `model` of the configuration that a training run left in its folder. Nothing is logged.

    Raises:
        ConfigError: this version doesn't understand it.
    """
    report = Report(allow_unknown=True)
    trees = read_layers([str(file)], [], report)
    report.raise_if_any()
    root, published = translate_layers(trees, report)
    settle_shared_keys(root, "train", report, published=published)
    model = read_model(root.child("model"), report)
    report.raise_if_any()
    return model


def read_layers(base: Sequence[str], overrides: Sequence[str], report: Report) -> list[Node]:
    """One tree per file and override, includes first, later ones win; interpolations are resolved over all of them.
    Problems go to the report.
    """
    trees: list[Node] = []
    for file in base:
        _read_with_includes(Path(file), (), trees, report)
    for text in overrides:
        tree = read_override(text, len(trees), report)
        if tree is not None:
            trees.append(tree)
    if not report.errors:
        root = Node({}, Origin("", None, ""))
        for tree in trees:
            root = merge(root, tree)  # shares its values with the trees
        resolve_interpolations(root, report)
    return trees


def _read_with_includes(file: Path, chain: tuple[Path, ...], trees: list[Node], report: Report) -> None:
    """Append the trees of the file's includes, then the file's own."""
    tree = read_yaml(file, 0, report)
    if tree is None:
        return
    include = tree.value.pop("include", None)
    names = [] if include is None else include.value if isinstance(include.value, list) else [include]
    for name in names:
        if not isinstance(name.value, str):
            report.error(name.origin, "must be the name of a file, or a list of names, relative to this file")
            continue
        target = file.parent / name.value
        if os.path.realpath(target) in [os.path.realpath(step) for step in (*chain, file)]:
            report.error(name.origin, f"{name.value} includes this file: a circle")
        elif not os.path.isfile(target):
            near = suggestion(name.value, [found.name for found in file.parent.glob("*.yaml")])
            report.error(name.origin, f"no file {shown_path(target)}; {near}")
        elif len(trees) >= _MAX_FILES:
            report.error(name.origin, f"more than {_MAX_FILES} files and includes make up this configuration")
            return
        else:
            _read_with_includes(target, (*chain, file), trees, report)
    _set_layer(tree, len(trees))
    trees.append(tree)


def _set_layer(node: Node, layer: int) -> None:
    node.origin = dataclasses.replace(node.origin, layer=layer)
    children = node.value.values() if isinstance(node.value, dict) else node.value
    for child in children if isinstance(node.value, dict | list) else ():
        _set_layer(child, layer)


def _check_sections(root: Node, report: Report) -> None:
    for key in [key for key in root.value if key not in SECTIONS]:
        node = root.value.pop(key)
        owner = section_of(key, report.kind)
        if owner:
            report.error(node.origin, f"belongs to section {owner}: write {owner}.{key}")
        else:
            report.unknown(node.origin, key, SECTIONS, "section")


def _read_sections(root: Node, kind: Kind, report: Report, *, published: bool, partial: bool) -> Config:
    settle_shared_keys(root, kind, report, published=published, partial=partial)
    args: TrainArgs | SampleArgs
    if kind == "train":
        args = read_section(
            TrainArgs, "args", root.child("args"), report, elsewhere=field_names(SampleArgs), partial=partial
        )
    else:
        args = read_section(
            SampleArgs, "args", root.child("args"), report, elsewhere=field_names(TrainArgs), partial=partial
        )
    model = read_model(root.child("model"), report, partial=partial)
    data = None
    if root.child("data") is not None:
        data = read_section(DataConfig, "data", root.child("data"), report, partial=partial)
    elif kind == "train" and not partial:
        report.error(
            Origin("", None, "data"),
            "missing section: say how clips are read, e.g. data.video_size=[480,720]",
        )
    deepspeed = read_deepspeed(root.child("deepspeed"), report)
    trains = kind == "train" or root.child("deepspeed") is not None
    text = resolved_yaml(args, model, data, deepspeed if trains else None)
    config = Config(kind, args, model, data, deepspeed, text)
    check_consistency(config, Findings(root, report, partial=partial))
    return config


def resolved_yaml(args: Any, model: ModelConfig, data: DataConfig | None, deepspeed: DeepSpeedSection | None) -> str:
    """The values in force as YAML that can be loaded again."""
    sections = {
        "args": dataclasses.asdict(args),
        "model": dataclasses.asdict(model),
        "data": None if data is None else dataclasses.asdict(data),
        "deepspeed": None if deepspeed is None else deepspeed.as_dict(),
    }
    return OmegaConf.to_yaml(OmegaConf.create({key: value for key, value in sections.items() if value is not None}))


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of leaving the process."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(prog="train_video.py" if kind == "train" else "sample_video.py", allow_abbrev=False)
        self._kind: Kind = kind

    def error(self, message: str) -> NoReturn:
        flags = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        known = [f"{flag}: {text}" for flag in flags if (text := self._key_of(flag.removeprefix("--")))]
        hint = f" ({'; '.join(known)})" if known else ""
        raise ConfigError(
            f"{message}{hint}; usage: {self.prog} --base a.yaml [b.yaml ...] [key=value ...] [--seed N] [--check]"
        )

    def _key_of(self, word: str) -> str:
        section = section_of(word, self._kind)
        return f"write {section}.{word}=..." if section else meant(word, self._kind)
